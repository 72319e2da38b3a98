"""What is asked of a run. Values and their reasons are in conf/evaluation, meanings are here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from urepa.core.declared_keys import COUNT, LARGEST, SIZE, part, setting


class Sampler(Enum):
    ddim = "ddim"
    dpmsolver = "dpmsolver"  # DPM-Solver++(2M)
    euler = "euler"
    heun = "heun"
    sde = "sde"  # Euler-Maruyama


@dataclass
class SampleGrid:
    _target_: str = "urepa.evaluation.sample_grid.SampleGrid"
    per_class: int = setting("images of each class", ge=1, le=SIZE)
    shown_per_class: int = setting("of these, how many the picture shows", ge=1, le=SIZE)
    max_classes: int = setting("classes that are sampled at most", ge=1, le=SIZE)
    sampler_steps: int = setting("of the sampler", ge=1, le=SIZE)
    guidance: float = setting("classifier-free guidance; 1: none", ge=0, le=LARGEST)
    knn: int | None = setting(
        "neighbours among training images that name a sample's class; null: not asked", ge=1, le=SIZE
    )


@dataclass
class TapProbe:
    _target_: str = "urepa.evaluation.probes.TapProbe"
    tap: str = setting("the tap that is read")
    timestep: int | float = setting("of the objective: DDPM's are whole, a flow's lie in [0, 1]", ge=0, le=LARGEST)
    knn: int = setting("k of the nearest neighbours", ge=1, le=SIZE)
    train_images: int = setting("training images that readers are fitted to", ge=1, le=COUNT)
    test_images: int = setting("held-out images", ge=1, le=COUNT)


@dataclass
class FrozenFeatures:
    tap: str = setting("read with its head's output, the teacher's tokens and the untrained model's")
    timestep: int | float = setting("of the objective: DDPM's are whole, a flow's lie in [0, 1]", ge=0, le=LARGEST)
    timesteps: list[int | float] = setting("more of them, as curves over t; []: none", ge=-LARGEST, le=LARGEST)
    train_images: int = setting("training images that readers are fitted to", ge=1, le=COUNT)
    test_images: int = setting("held-out images", ge=1, le=COUNT)


@dataclass
class Knn(FrozenFeatures):
    _target_: str = "urepa.evaluation.probes.Knn"
    k: int = setting("k of the nearest neighbours", ge=1, le=SIZE)


@dataclass
class LinearProbe(FrozenFeatures):
    _target_: str = "urepa.evaluation.probes.LinearProbe"


@dataclass
class TeacherAlignment:
    _target_: str = "urepa.evaluation.teacher_agreement.Alignment"
    tap: str = setting("whose values have the plain names; those of other aligned taps end in theirs")
    timestep: int | float = setting("of the objective: DDPM's are whole, a flow's lie in [0, 1]", ge=0, le=LARGEST)
    timesteps: list[int | float] = setting("the grid of the figure, with `timestep`", ge=-LARGEST, le=LARGEST)
    neighbours: int = setting("k of the recall and of CKNNA", ge=1, le=SIZE)
    images: int = setting("held-out images", ge=1, le=COUNT)


@dataclass
class GeneratedImages:
    _target_: str = "urepa.evaluation.generated_images.GeneratedImages"
    count: int = setting("images in all, as many of each class as can be", ge=2, le=SIZE)
    sampler: Sampler | None = setting("null: the objective's usual one")
    steps: int = setting("of the sampler", ge=1, le=SIZE)
    guidance: float = setting("classifier-free guidance; 1: none", ge=0, le=LARGEST)
    interval: list[float] = setting(
        "a flow's times (1 is noise) at which guidance holds; of others it is [0, 1]", ge=0, le=1
    )
    batch_size: int = setting("images computed and kept together; another size rounds otherwise", ge=1, le=SIZE)


@dataclass
class Pixels:
    _target_: str = "urepa.evaluation.encoders.Pixels"
    grid: int = setting("rows and columns that an image is averaged to", ge=1, le=SIZE)


@dataclass
class CifarCNN:
    _target_: str = "urepa.evaluation.cifar_cnn.CifarCNN"
    weights: str = setting("the file that `python -m urepa.train_classifier` wrote")


@dataclass
class Inception:
    _target_: str = "urepa.evaluation.encoders.Inception"
    weights: str = setting("pt_inception-2015-12-05-6726825d.pth, or the same as .safetensors")


@dataclass
class Generation:
    _target_: str = "urepa.evaluation.image_distances.Generation"
    images: Any = part("which images are generated")
    encoders: dict[str, Any] = part("by the name that their columns have")
    reference_images: int | None = setting("training images to compare with; null: all", ge=2, le=COUNT)
    subset: int = setting(
        "images of either kind for KID, precision and recall; the Fréchet distance takes all", ge=2, le=COUNT
    )
    kid_subsets: int = setting("subsets that KID is averaged over", ge=1, le=SIZE)
    kid_subset_size: int = setting("images in each of them", ge=2, le=SIZE)
    neighbours: int = setting("k of the balls of precision and recall", ge=1, le=SIZE)


@dataclass
class InceptionScore:
    _target_: str = "urepa.evaluation.image_distances.InceptionScore"
    images: Any = part("which images are generated")
    encoder: Any = part("the classifier whose probabilities count")
    splits: int = setting("parts of the images that the score is averaged over", ge=1, le=SIZE)


@dataclass
class ClipScore:
    _target_: str = "urepa.evaluation.clip_score.ClipScore"
    images: Any = part("which images are generated")
    model: str = setting("a hub id or a local folder")
    class_names: str = setting('"imagenet", or a file with a name a line')


@dataclass
class Spatial:
    _target_: str = "urepa.evaluation.spatial_structure.Spatial"
    tap: str = setting("the tap that is read")
    timestep: int | float = setting("of the objective: DDPM's are whole, a flow's lie in [0, 1]", ge=0, le=LARGEST)
    images: int = setting("held-out images", ge=1, le=COUNT)
    far: float = setting("share of a grid's largest Manhattan distance from which tokens are distant", ge=0, le=1)
    decay: float = setting("share up to which the slope is taken", ge=0, le=1)


@dataclass
class Dense:
    _target_: str = "urepa.evaluation.segmentation.Dense"
    tap: str = setting("the tap that is read")
    timestep: int | float = setting("of the objective: DDPM's are whole, a flow's lie in [0, 1]", ge=0, le=LARGEST)
    folder: str | None = setting("a folder of images and masks")
    train_images: int = setting("training images at most", ge=1, le=COUNT)
    test_images: int = setting("held-out images at most", ge=1, le=COUNT)
    teacher: Any = part("the encoder of the ceiling; null: none", None)
