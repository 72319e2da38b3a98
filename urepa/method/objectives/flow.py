"""A flow from data to noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import DIFFUSION, MEANS_OVER_TIMES, NOISE_LEVELS, TOTAL
from urepa.core.declared_keys import setting
from urepa.core.descriptions import Formula
from urepa.core.escaping import markdown

if TYPE_CHECKING:
    from urepa.method.objectives.flow_math import FlowMath

FORMULAS = {  # by path: x_t and its velocity
    "linear": (r"x_t = (1 - t)\, x_0 + t\, \epsilon", r"y = \epsilon - x_0"),
    "cosine": (
        r"x_t = \cos \frac{\pi t}{2}\, x_0 + \sin \frac{\pi t}{2}\, \epsilon",
        r"y = \frac{\pi}{2} \Bigl( \cos \frac{\pi t}{2}\, \epsilon - \sin \frac{\pi t}{2}\, x_0 \Bigr)",
    ),
}
DRAWS = {
    "uniform": "uniformly from [0, 1]",
    "lognormal": "such that the noise-to-signal ratio is log-normal(0, 1)",
    "mode": "with the mode density of Stable Diffusion 3, s = 1.29",
}


class FlowPath(Enum):
    linear = "linear"
    cosine = "cosine"


class TimeDraw(Enum):
    uniform = "uniform"
    lognormal = "lognormal"
    mode = "mode"


@dataclass
class Flow:
    """A path from data (t = 0) to noise (t = 1); the backbone predicts its velocity dx_t/dt."""

    _target_: str = "urepa.method.objectives.flow.Flow"
    path: FlowPath = setting("the path from data to noise", alters=(DIFFUSION, TOTAL, NOISE_LEVELS))
    draw: TimeDraw = setting("how training times are drawn", alters=(DIFFUSION, TOTAL, MEANS_OVER_TIMES), unpairs=True)

    # The scale of the diffusion loss depends on what is predicted; that of the implied x0's error does not.
    alters: ClassVar[tuple[str, ...]] = (DIFFUSION, TOTAL)

    prediction_type: ClassVar[str] = "flow"
    scheduler: ClassVar[Mapping[str, str]] = {}
    training_only: ClassVar[tuple[str, ...]] = ("draw",)
    has_intervals: ClassVar[bool] = True
    most_steps: ClassVar[float] = math.inf
    times: ClassVar[str] = "times lie in [0, 1]"

    def check(self) -> None:
        """Nothing to check: any path can be combined with any draw."""

    def has_time(self, t: float) -> bool:
        return 0 <= t <= 1

    def time_at(self, fraction: float) -> float:
        return float(fraction)

    def build(self) -> FlowMath:
        from urepa.method.objectives.flow_math import FlowMath

        return FlowMath(str(self.path), str(self.draw))

    def description(self) -> list[str | Formula]:
        path, target = FORMULAS[str(self.path)]
        return [
            f"The backbone predicts the velocity of a {self.path} flow from data (t = 0) to noise (t = 1); t is drawn "
            f"{DRAWS[str(self.draw)]}.",
            Formula(rf"{path}, \qquad {target}"),
        ]

    def model_card(self) -> str:
        return (
            f"**The model predicts the velocity of the {markdown(str(self.path))} path**, from data at t = 0 to noise "
            "at t = 1 (REPA's direction; SiT's own code runs the other way)."
        )
