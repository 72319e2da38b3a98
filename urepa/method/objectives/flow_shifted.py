"""The flow of published transformers, with shifted times."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from urepa.core.comparability import DIFFUSION, MEANS_OVER_TIMES, NOTHING, TOTAL
from urepa.core.declared_keys import TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.method.shifted_flow import ShiftedFlow

if TYPE_CHECKING:
    from urepa.method.objectives.flow_shifted_math import ShiftedFlowMath

PATH = r"x_t = (1 - t)\, x_0 + t\, \epsilon, \qquad y = \epsilon - x_0"

MOST = 50  # the largest μ and mean of a draw; floats can represent e^μ up to there


class ShiftedDraw(Enum):
    uniform = "uniform"
    logit_normal = "logit_normal"


class SamplingGrid(Enum):
    even = "even"
    scheduler = "scheduler"


@dataclass
class FlowShifted(ShiftedFlow):
    """Prediction of the velocity of the straight path from data (t = 0) to noise (t = 1), at times
    t = s·u/(1 + (s − 1)·u) (Esser et al. 2024, arXiv 2403.03206, §5.3.2). For s > 1 more of them are near the noise."""

    _target_: str = "urepa.method.objectives.flow_shifted.FlowShifted"
    draw: ShiftedDraw = setting(
        "how u is drawn in training: uniformly, or as the sigmoid of a normal variable",
        alters=(DIFFUSION, TOTAL, MEANS_OVER_TIMES),
        unpairs=True,
    )
    draw_mean: float = setting(
        "mean of that normal variable",
        0.0,
        ge=-MOST,
        le=MOST,
        alters=(DIFFUSION, TOTAL, MEANS_OVER_TIMES),
        unpairs=True,
    )
    draw_std: float = setting(
        "its standard deviation", 1.0, ge=TINY, alters=(DIFFUSION, TOTAL, MEANS_OVER_TIMES), unpairs=True
    )
    shift: float = setting(
        "s, in training and in sampling; 1: none",
        ge=TINY,
        alters=(DIFFUSION, TOTAL, MEANS_OVER_TIMES),
        unpairs=True,
    )
    grid: SamplingGrid = setting(
        "times of sampling: an even grid from 1 to 0, shifted, or that of diffusers' "
        "FlowMatchEulerDiscreteScheduler, whose last time before 0 is its first timestep's time, shifted twice",
        alters=NOTHING,
    )

    def check(self) -> None:
        check_draw(str(self.draw), self.draw_mean, self.draw_std)

    def build(self) -> ShiftedFlowMath:
        from urepa.method.objectives.flow_shifted_math import ShiftedFlowMath

        return ShiftedFlowMath(str(self.draw), self.draw_mean, self.draw_std, self.shift, str(self.grid))

    def description(self) -> list[str | Formula]:
        return [
            "The backbone predicts the velocity of a linear flow from data (t = 0) to noise (t = 1). Times are "
            f"t = s·u/(1 + (s − 1)·u) with s = {number(self.shift)}, in sampling from {GRIDS[str(self.grid)]}, in "
            f"training with u drawn {drawn(str(self.draw), self.draw_mean, self.draw_std)}.",
            Formula(PATH),
        ]

    def model_card(self) -> str:
        return (
            "**The model predicts the velocity of the linear path**, from data at t = 0 to noise at t = 1, with times "
            f"shifted by {number(self.shift)}, as a FlowMatchEulerDiscreteScheduler of this `shift` has them."
        )


GRIDS = {"even": "an even grid of u", "scheduler": "the grid of diffusers' FlowMatchEulerDiscreteScheduler"}


def check_draw(draw: str, mean: float, std: float) -> None:
    """Raises UserError if the mean or the standard deviation has no effect."""
    if draw == "uniform" and (mean, std) != (0.0, 1.0):
        raise UserError("objective.draw_mean and draw_std are of objective.draw=logit_normal; drop them")


def drawn(draw: str, mean: float, std: float) -> str:
    """A description of a draw, in words."""
    if draw == "uniform":
        return "uniformly from [0, 1]"
    return f"as the sigmoid of a normal number of mean {number(mean)} and standard deviation {number(std)}"
