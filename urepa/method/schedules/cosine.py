"""λ falls along half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import setting
from urepa.core.descriptions import number


@dataclass
class Cosine:
    """final + (1 - final)·(1 + cos(π·s/S))/2 of the peak, for the update s of the S after the warm-up: the shape that
    learning rates have in Loshchilov and Hutter 2017 (arXiv 1608.03983, eq. 5), without restarts."""

    _target_: str = "urepa.method.schedules.cosine.Cosine"
    final: float = setting("share of loss.lambda_max that is left at trainer.max_steps", ge=0, le=1, alters=(TOTAL,))

    def check(self) -> None:
        """Any settings in their ranges go together."""

    def factor(self, step: int, max_steps: int) -> float:
        if step >= max_steps:
            return self.final
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * step / max_steps))

    def description(self) -> str:
        left = f"{number(self.final)} of that" if self.final else "0"
        return f"falls along half a cosine to {left} at the last update"
