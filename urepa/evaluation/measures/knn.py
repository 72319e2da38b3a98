"""The declaration of k-NN on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import EvaluatedRun
from urepa.core.evaluation_protocols import ImageCounts, Metric
from urepa.evaluation.frozen_features import FrozenFeatures, reading_metrics
from urepa.evaluation.image_counts import refuse_numbers

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class Knn(FrozenFeatures):
    """k-NN by cosine."""

    _target_: str = "urepa.evaluation.measures.knn.Knn"
    k: int = setting("k of the nearest neighbours", ge=1, le=SIZE)
    metrics: ClassVar[tuple[Metric, ...]] = tuple(reading_metrics("knn", "k-NN", place=20))

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.probes_math import read_neighbours

        return read_neighbours(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        images = min(self.train_images, there.train)
        refuse_numbers(f"{images:,} training images", self, {"k": images} if self.k > images else {}, place)

    def description(self, run: EvaluatedRun) -> str:
        return self.reading_text(run, f"k-NN (k = {self.k}, cosine)")
