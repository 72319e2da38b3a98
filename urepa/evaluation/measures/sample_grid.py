"""The declaration of a grid of class-conditional samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import LARGEST, SAMPLER_STEPS, SIZE, setting
from urepa.core.descriptions import EvaluatedRun, number, sampling_text
from urepa.core.evaluation_protocols import ImageCounts, Metric
from urepa.evaluation.image_counts import refuse_numbers

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class SampleGrid:
    """A grid of class-conditional samples, and the accuracy of a k-NN on real images for them. The rows of the grid are
    classes, with names if the track has them."""

    _target_: str = "urepa.evaluation.measures.sample_grid.SampleGrid"
    per_class: int = setting("images of each class", ge=1, le=SIZE)
    shown_per_class: int = setting("how many of these the grid shows", ge=1, le=SIZE)
    max_classes: int = setting("largest number of classes that are sampled", ge=1, le=SIZE)
    sampler_steps: int = setting("of the sampler", ge=1, le=SIZE, is_a=SAMPLER_STEPS)
    guidance: float = setting("classifier-free guidance; 1: none", ge=0, le=LARGEST)
    knn: int | None = setting("k of a k-NN on training images that classifies the samples; null: none", ge=1, le=SIZE)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("final/samples_named_rightly", "samples classified correctly", "↑", place=70),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.sample_grid_math import sample

        return sample(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        fitting = {"knn": there.train} if self.knn is not None and self.knn > there.train else {}
        refuse_numbers(f"{there.train:,} training images", self, fitting, place)

    def description(self, run: EvaluatedRun) -> str:
        classes = min(self.max_classes, run.num_classes)
        how = sampling_text(run, None, self.sampler_steps, self.guidance)
        named = f" A k-NN (k = {self.knn}) fitted to the training images names them." if self.knn is not None else ""
        return f"Samples: {self.per_class} images of each of {number(classes)} classes by {how}.{named}"
