"""The state of `gradient_conflict`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from urepa.method.schedules.gradient_conflict import GradientConflict
from urepa.method.schedules.measured_math import MeasuredSchedule


@dataclass(frozen=True)
class Average:
    """The moving average of the cosine of the gradients, and whether it has cut λ off."""

    ema: float | None = None  # None: nothing is measured yet
    is_closed: bool = False
    count: int = 0  # of the measurements in it

    def after(self, cosine: float | None, declared: GradientConflict) -> Average:
        """The average after one more update. A missing or non-finite cosine leaves it unchanged: that of a gradient
        that is 0, as a SiT's is before its output layer has changed."""
        if cosine is None or not math.isfinite(cosine):
            return self
        kept = declared.ema_decay
        ema = cosine if self.ema is None else kept * self.ema + (1.0 - kept) * cosine
        count = self.count + 1
        return Average(ema, self.is_closed or (count >= declared.least and ema <= declared.threshold), count)


class ConflictSchedule(MeasuredSchedule):
    """A shape that a conflict of the gradients cuts off."""

    logs_as = "gradient_cosine_ema"

    def __init__(self, declared: GradientConflict, warmup_steps: int, max_steps: int) -> None:
        super().__init__(declared, warmup_steps, max_steps, Average())
        self.every = declared.every

    def measures_at(self, step: int) -> bool:
        return step % self.every == 0
