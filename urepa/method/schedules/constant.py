"""λ stays at its peak."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.method.schedules.shape_math import Shape


@dataclass
class Constant(Shape):
    """λ = loss.lambda_max from the end of the warm-up on, until `stop_step`."""

    _target_: str = "urepa.method.schedules.constant.Constant"
