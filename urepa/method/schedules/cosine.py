"""λ falls along half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from urepa.method.schedules.shape_math import Decay


@dataclass
class Cosine(Decay):
    """final + (1 - final)·(1 + cos(π·p))/2 of the peak, for p from 0 at the warm-up's end to 1 at the decay's: the
    shape that learning rates have in Loshchilov and Hutter 2017 (arXiv 1608.03983, eq. 5), without restarts."""

    _target_: str = "urepa.method.schedules.cosine.Cosine"

    def factor(self, step: int, steps: int) -> float:
        if step >= steps:
            return self.final
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    def words(self) -> tuple[str, str]:
        return "along half a cosine", r"\tfrac{1}{2} (1 + \cos \pi p)"
