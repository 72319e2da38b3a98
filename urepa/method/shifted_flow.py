"""What the declarations of flows with shifted times have alike (`urepa.core.protocols.Objective`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from urepa.core.comparability import DIFFUSION, TOTAL


class ShiftedFlow:
    """The base of such a declaration: the straight path, with times in [0, 1]."""

    alters: ClassVar[tuple[str, ...]] = (DIFFUSION, TOTAL)
    prediction_type: ClassVar[str] = "flow"
    path: ClassVar[str] = "linear"
    scheduler: ClassVar[Mapping[str, str]] = {}
    training_only: ClassVar[tuple[str, ...]] = ("draw", "draw_mean", "draw_std")
    has_intervals: ClassVar[bool] = True
    most_steps: ClassVar[float] = math.inf
    times: ClassVar[str] = "times lie in [0, 1]"

    def has_time(self, t: float) -> bool:
        return 0 <= t <= 1

    def time_at(self, fraction: float) -> float:
        return float(fraction)
