"""What is asked of a run. Values and their reasons are in conf/evaluation, meanings are here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Sampler(Enum):
    ddim = "ddim"
    dpmsolver = "dpmsolver"  # DPM-Solver++(2M)
    euler = "euler"
    heun = "heun"
    sde = "sde"  # Euler-Maruyama


@dataclass
class SampleGrid:
    _target_: str = "urepa.evaluation.sample_grid.SampleGrid"
    per_class: int = MISSING
    shown_per_class: int = MISSING
    max_classes: int = MISSING
    sampler_steps: int = MISSING
    guidance: float = MISSING
    knn: int | None = MISSING  # neighbours that name the samples, among training images; null: not asked


@dataclass
class TapProbe:
    _target_: str = "urepa.evaluation.probes.TapProbe"
    tap: str = MISSING
    timestep: int | float = MISSING  # of the objective: DDPM's are whole, flow's lie in [0, 1]
    knn: int = MISSING
    train_images: int = MISSING
    test_images: int = MISSING


@dataclass
class FrozenFeatures:
    tap: str = MISSING  # read with its head's output, the teacher's tokens and the untrained model's
    timestep: int | float = MISSING
    timesteps: list[int | float] = MISSING  # more of them, as curves over t; []: none
    train_images: int = MISSING  # readers are fitted to so many
    test_images: int = MISSING  # held-out ones


@dataclass
class Knn(FrozenFeatures):
    _target_: str = "urepa.evaluation.probes.Knn"
    k: int = MISSING


@dataclass
class LinearProbe(FrozenFeatures):
    _target_: str = "urepa.evaluation.probes.LinearProbe"


@dataclass
class TeacherAlignment:
    _target_: str = "urepa.evaluation.teacher_agreement.Alignment"
    tap: str = MISSING  # whose values have the plain names; other aligned taps' end in theirs
    timestep: int | float = MISSING
    timesteps: list[int | float] = MISSING  # the grid of the figure, with `timestep`
    neighbours: int = MISSING  # k of the recall and of CKNNA
    images: int = MISSING  # held-out ones


@dataclass
class GeneratedImages:
    _target_: str = "urepa.evaluation.generated_images.GeneratedImages"
    count: int = MISSING  # in all, as many of each class as can be
    sampler: Sampler | None = MISSING  # null: the objective's usual one
    steps: int = MISSING
    guidance: float = MISSING
    interval: list[float] = MISSING  # a flow's times (1 is noise) at which guidance holds; of others it is [0, 1]
    batch_size: int = MISSING  # computed and kept together; another one rounds otherwise


@dataclass
class Pixels:
    _target_: str = "urepa.evaluation.encoders.Pixels"
    grid: int = MISSING  # the image is averaged over so many rows and columns


@dataclass
class CifarCNN:
    _target_: str = "urepa.evaluation.cifar_cnn.CifarCNN"
    weights: str = MISSING  # what `python -m urepa.train_classifier` wrote


@dataclass
class Inception:
    _target_: str = "urepa.evaluation.encoders.Inception"
    weights: str = MISSING  # pt_inception-2015-12-05-6726825d.pth, or as .safetensors


@dataclass
class Generation:
    _target_: str = "urepa.evaluation.image_distances.Generation"
    images: Any = MISSING
    encoders: dict[str, Any] = MISSING  # by the name that their columns bear
    reference_images: int | None = MISSING  # training images to compare with; null takes all
    subset: int = MISSING  # images of either kind for KID, precision and recall; the Fréchet distance takes all
    kid_subsets: int = MISSING
    kid_subset_size: int = MISSING
    neighbours: int = MISSING  # that a ball of precision and recall reaches to


@dataclass
class InceptionScore:
    _target_: str = "urepa.evaluation.image_distances.InceptionScore"
    images: Any = MISSING
    encoder: Any = MISSING
    splits: int = MISSING


@dataclass
class ClipScore:
    _target_: str = "urepa.evaluation.clip_score.ClipScore"
    images: Any = MISSING
    model: str = MISSING  # a hub id or a local folder
    class_names: str = MISSING  # "imagenet", or a file with a name a line


@dataclass
class Spatial:
    _target_: str = "urepa.evaluation.spatial_structure.Spatial"
    tap: str = MISSING
    timestep: int | float = MISSING
    images: int = MISSING  # held-out ones
    far: float = MISSING  # share of a grid's largest Manhattan distance from which tokens are distant
    decay: float = MISSING  # share up to which the slope is taken


@dataclass
class Dense:
    _target_: str = "urepa.evaluation.segmentation.Dense"
    tap: str = MISSING
    timestep: int | float = MISSING
    folder: str | None = MISSING  # of images and masks
    train_images: int = MISSING  # at most
    test_images: int = MISSING  # at most
    teacher: Any = None  # the encoder of the ceiling; null: none
