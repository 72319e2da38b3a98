"""λ falls in a straight line."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.method.schedules.shape_math import Decay


@dataclass
class Linear(Decay):
    """1 + (final - 1)·p of the peak, for p from 0 at the warm-up's end to 1 at the decay's."""

    _target_: str = "urepa.method.schedules.linear.Linear"

    def factor(self, step: int, steps: int) -> float:
        return self.final if step >= steps else 1.0 + (self.final - 1.0) * step / steps

    def words(self) -> tuple[str, str]:
        return "in a straight line", "(1 - p)"
