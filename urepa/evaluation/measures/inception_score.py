"""The declaration of the Inception Score of generated images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import SIZE, part, setting
from urepa.core.descriptions import EvaluatedRun, encoder_text
from urepa.core.evaluation_protocols import ImageCounts, Metric
from urepa.evaluation.image_counts import refuse_numbers

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class InceptionScore:
    """Inception Score of the run's images (Salimans et al. 2016)."""

    _target_: str = "urepa.evaluation.measures.inception_score.InceptionScore"
    images: Any = part("which images are generated")
    encoder: Any = part("the classifier whose probabilities count")
    splits: int = setting("number of parts of the images over which the score is averaged", ge=1, le=SIZE)
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("final/inception_score", "Inception Score", "↑", place=80),)

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.image_distances_math import score_classes

        return score_classes(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        fitting = {"splits": self.images.count} if self.splits > self.images.count else {}
        refuse_numbers(f"{self.images.count:,} generated images", self, fitting, place)

    def description(self, run: EvaluatedRun) -> str:
        name = encoder_text(self.encoder)
        return f"Inception Score: {self.images.description(run)}, by {name}, in {self.splits} splits."
