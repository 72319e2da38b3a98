"""λ stays at its peak."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Constant:
    """λ = loss.lambda_max from the end of the warm-up on."""

    _target_: str = "urepa.method.schedules.constant.Constant"

    def check(self) -> None:
        """Any settings in their ranges go together."""

    def factor(self, step: int, max_steps: int) -> float:
        return 1.0

    def description(self) -> str:
        return ""
