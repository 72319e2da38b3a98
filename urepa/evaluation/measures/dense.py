"""The declaration of linear segmentation from frozen tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, TAP, TIME, part, setting
from urepa.core.descriptions import EvaluatedRun, encoder_text, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import OF_HEADS, RANDOM, TEACHER, UNTRAINED, ImageCounts, Metric, Reference

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class Dense:
    """mIoU of linear segmentation at the resolution of the masks, with bilinearly enlarged logits. Evaluated are the
    tap and its head's output under the null condition, with noise fixed by each image's name; an encoder's tokens as
    upper reference; and the tap before any training as lower reference."""

    _target_: str = "urepa.evaluation.measures.dense.Dense"
    tap: str = setting("the tap that is read", is_a=TAP)
    timestep: int | float = setting(
        "time of the objective: a whole number for DDPM, in [0, 1] for a flow", ge=0, le=LARGEST, is_a=TIME
    )
    folder: str | None = setting("a folder of images and masks")
    train_images: int = setting("training images at most", ge=1, le=COUNT)
    test_images: int = setting("held-out images at most", ge=1, le=COUNT)
    teacher: Any = part("the encoder of the ceiling; null: none", None)
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(
            f"final/dense/{what}",
            f"mIoU: {what}",
            "↑",
            place=50,
            trained_by=OF_HEADS if what == "head" else (),
            beside=(
                Reference("final/dense/teacher", TEACHER),
                Reference(f"final/dense/untrained_{what}", UNTRAINED),
                Reference(f"final/dense/random_{what}", RANDOM),
            ),
        )
        for what in ("tap", "head")
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.dense_math import segment_linearly

        return segment_linearly(self, context)

    def check_images(self, there: ImageCounts, place: str = "evaluation.dense.") -> None:
        """Raises UserError if the folder of images and masks is not given or does not exist."""
        if self.folder is None:
            raise UserError(f"give {place}folder=FOLDER with images/NAME.jpg and masks/NAME.png")
        if not Path(self.folder).is_dir():
            raise UserError(f"{self.folder} is not a folder: give {place}folder=FOLDER with images/ and masks/")

    def description(self, run: EvaluatedRun) -> str:
        above = "" if self.teacher is None else f", below {encoder_text(self.teacher)}"
        return (
            f"Linear segmentation of the tap {self.tap} and its head at t = {self.timestep} under the null condition, "
            f"above the model before training{above}: mIoU, fitted to {number(self.train_images)} images at most and "
            f"read on {number(self.test_images)} at most."
        )
