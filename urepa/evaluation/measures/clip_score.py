"""The declaration of the CLIP score: how well generated images match the prompts of their classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import part, setting
from urepa.core.descriptions import EvaluatedRun
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import ImageCounts, Metric
from urepa.data.lists.classes import class_names

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class ClipScore:
    """CLIP score of the run's images (Hessel et al. 2021)."""

    _target_: str = "urepa.evaluation.measures.clip_score.ClipScore"
    images: Any = part("which images are generated")
    model: str = setting("a hub id or a local folder")
    class_names: str = setting('"imagenet", or a file with one name per line')
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("final/clip_score", "CLIP score", "↑", place=90),)

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.clip_score_math import score_prompts

        return score_prompts(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        names = len(class_names(self.class_names))
        if names != there.classes:
            raise UserError(
                f"class_names={self.class_names} has {names} names; this run has {there.classes} classes: give "
                f"{place}class_names=FILE, a file with one name per line"
            )

    def description(self, run: EvaluatedRun) -> str:
        asked = f"the prompts of the classes named in {Path(self.class_names).name}"
        return f"CLIP score: {self.images.description(run)}, against {asked}, by {self.model}."
