"""The declaration of logistic regression on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.descriptions import EvaluatedRun
from urepa.core.evaluation_protocols import ImageCounts, Metric
from urepa.evaluation.frozen_features import FrozenFeatures, reading_metrics
from urepa.evaluation.image_counts import refuse_one_class

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


@dataclass
class LinearProbe(FrozenFeatures):
    """Logistic regression on standardised features."""

    _target_: str = "urepa.evaluation.measures.linear_probe.LinearProbe"
    metrics: ClassVar[tuple[Metric, ...]] = tuple(reading_metrics("linear_probe", "linear probe", place=30))

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.probes_math import read_linearly

        return read_linearly(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        refuse_one_class(there)

    def description(self, run: EvaluatedRun) -> str:
        return self.reading_text(run, "linear probe (logistic regression, C = 0.1, on standardised features)")
