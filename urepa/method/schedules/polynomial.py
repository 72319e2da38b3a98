"""λ falls as a power of the remaining share of the decay."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LARGEST, TINY, setting
from urepa.core.descriptions import number
from urepa.method.schedules.shape_math import Decay


@dataclass
class Polynomial(Decay):
    """final + (1 - final)·(1 - p)^power of the peak, for p from 0 at the warm-up's end to 1 at the decay's. With a
    power above 1, λ falls fastest at first, below 1 fastest at the end; a power of 1 equals `linear`."""

    _target_: str = "urepa.method.schedules.polynomial.Polynomial"
    power: float = setting("exponent of the remaining share of the decay", ge=TINY, le=LARGEST, alters=(TOTAL,))

    def factor(self, step: int, steps: int) -> float:
        if step >= steps:
            return self.final
        return self.final + (1.0 - self.final) * (1.0 - step / steps) ** self.power

    def words(self) -> tuple[str, str]:
        return f"with the power {number(self.power)} of the share that is left", rf"(1 - p)^{{{number(self.power)}}}"
