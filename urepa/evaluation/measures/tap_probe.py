"""The declaration of a quick probe of a tap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, SIZE, TAP, TIME, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.evaluation_protocols import PIXELS, TEACHER, ImageCounts, Metric, Reference
from urepa.evaluation.image_counts import refuse_numbers, refuse_one_class

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class TapProbe:
    """The quick probe: k-NN (cosine) and logistic regression (standardised features) of the mean-pooled tap, fitted to
    training images and scored on test images. References are a k-NN of the teacher's pooled tokens and of pixels."""

    _target_: str = "urepa.evaluation.measures.tap_probe.TapProbe"
    tap: str = setting("the tap that is read", is_a=TAP)
    timestep: int | float = setting(
        "time of the objective: a whole number for DDPM, in [0, 1] for a flow", ge=0, le=LARGEST, is_a=TIME
    )
    knn: int = setting("k of the nearest neighbours", ge=1, le=SIZE)
    train_images: int = setting("training images for fitting", ge=1, le=COUNT)
    test_images: int = setting("held-out images", ge=1, le=COUNT)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "final/tap_knn",
            "k-NN on the tap",
            "↑",
            place=10,
            beside=(
                Reference("final/teacher_knn", TEACHER, "k-NN on the teacher's tokens"),
                Reference("final/pixel_knn", PIXELS, "k-NN on pixels"),
            ),
        ),
        Metric("final/tap_linear_probe", "linear probe of the tap", "↑", place=10),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.probes_math import probe_tap

        return probe_tap(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        refuse_one_class(there)
        images = min(self.train_images, there.train)
        refuse_numbers(f"{images:,} training images", self, {"knn": images} if self.knn > images else {}, place)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Probe: the tap {self.tap}, mean-pooled, at t = {self.timestep} under the null condition; a k-NN (k = "
            f"{self.knn}, cosine) and a linear probe fitted to {number(self.train_images)} training images and read on "
            f"{number(self.test_images)} test images."
        )
