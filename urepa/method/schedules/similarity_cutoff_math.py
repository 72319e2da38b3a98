"""The state of `similarity_cutoff`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from urepa.method.schedules.measured_math import MeasuredSchedule
from urepa.method.schedules.similarity_cutoff import SimilarityCutoff


@dataclass(frozen=True)
class Average:
    """The moving average of the similarity, and whether it has cut λ off."""

    ema: float | None = None  # None: nothing is measured yet
    is_closed: bool = False

    def after(self, similarity: float | None, declared: SimilarityCutoff) -> Average:
        """The average after one more update's similarity. A missing or non-finite one leaves it unchanged."""
        ema = self.ema
        if similarity is not None and math.isfinite(similarity):
            ema = similarity if ema is None else declared.ema_decay * ema + (1.0 - declared.ema_decay) * similarity
        is_above = ema is not None and ema >= declared.threshold
        return Average(ema, is_above or (self.is_closed and not declared.recoverable))


class SimilaritySchedule(MeasuredSchedule):
    """A shape that the similarity cuts off."""

    logs_as = "similarity_ema"

    def __init__(self, declared: SimilarityCutoff, warmup_steps: int, max_steps: int) -> None:
        super().__init__(declared, warmup_steps, max_steps, Average())
