"""The flow of published transformers, with times that are shifted by the size of the image and the number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.comparability import DIFFUSION, MEANS_OVER_TIMES, NOTHING, TOTAL
from urepa.core.declared_keys import SIZE, TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.method.objectives.flow_shifted import MOST, PATH, ShiftedDraw, check_draw, drawn
from urepa.method.shifted_flow import ShiftedFlow

if TYPE_CHECKING:
    from urepa.method.objectives.flow_shifted_math import StepShiftedFlowMath

TIMES = (DIFFUSION, TOTAL, MEANS_OVER_TIMES)
STEEPEST = 1e-3  # slope of μ, per image token


@dataclass
class FlowBySteps(ShiftedFlow):
    """Prediction of the velocity of the straight path from data (t = 0) to noise (t = 1), at times
    t = s·u/(1 + (s − 1)·u), where s = e^μ, as in Flux.2's pipeline. μ is slope·tokens + offset. Sampling in few
    steps and in many steps have different slopes and offsets, and μ is linear in the number of steps between them."""

    _target_: str = "urepa.method.objectives.flow_by_steps.FlowBySteps"
    draw: ShiftedDraw = setting(
        "how u is drawn in training: uniformly, or as the sigmoid of a normal variable", alters=TIMES, unpairs=True
    )
    draw_mean: float = setting("mean of that normal variable", 0.0, ge=-MOST, le=MOST, alters=TIMES, unpairs=True)
    draw_std: float = setting("its standard deviation", 1.0, ge=TINY, alters=TIMES, unpairs=True)
    few_slope: float = setting("slope of μ at few_steps", ge=-STEEPEST, le=STEEPEST, alters=NOTHING)
    few_offset: float = setting("offset of μ at few_steps", ge=-MOST, le=MOST, alters=NOTHING)
    few_steps: int = setting("number of sampling steps with few_slope and few_offset", ge=1, le=SIZE, alters=NOTHING)
    many_slope: float = setting(
        "slope of μ at many_steps, and in training", ge=-STEEPEST, le=STEEPEST, alters=TIMES, unpairs=True
    )
    many_offset: float = setting(
        "offset of μ at many_steps, and in training", ge=-MOST, le=MOST, alters=TIMES, unpairs=True
    )
    many_steps: int = setting("number of sampling steps with many_slope and many_offset", ge=1, le=SIZE, alters=NOTHING)
    most_tokens: int = setting(
        "number of image tokens above which all sampling uses many_slope and many_offset", ge=1, le=SIZE, alters=NOTHING
    )
    token_side: int = setting("side of an image token, in latent pixels", ge=1, le=SIZE, alters=TIMES, unpairs=True)

    def check(self) -> None:
        check_draw(str(self.draw), self.draw_mean, self.draw_std)
        if self.few_steps >= self.many_steps:
            raise UserError(
                f"objective.few_steps={self.few_steps} is not below objective.many_steps={self.many_steps}; give one "
                "that is"
            )

    def build(self) -> StepShiftedFlowMath:
        from urepa.method.objectives.flow_shifted_math import StepShiftedFlowMath

        few = (self.few_slope, self.few_offset, self.few_steps)
        many = (self.many_slope, self.many_offset, self.many_steps)
        draw = (str(self.draw), self.draw_mean, self.draw_std)
        return StepShiftedFlowMath(*draw, few, many, self.most_tokens, self.token_side)

    def description(self) -> list[str | Formula]:
        return [
            "The backbone predicts the velocity of a linear flow from data (t = 0) to noise (t = 1). Times are "
            f"t = s·u/(1 + (s − 1)·u) with s = e^μ. In training μ is {number(self.many_slope)} times the number of "
            f"image tokens, plus {number(self.many_offset)}, and u is drawn "
            f"{drawn(str(self.draw), self.draw_mean, self.draw_std)}. In sampling u is an even grid, and μ is that at "
            f"{number(self.many_steps)} steps, at {number(self.few_steps)} steps {number(self.few_slope)} times the "
            f"number of tokens plus {number(self.few_offset)}, and linear in the number of steps between them; above "
            f"{number(self.most_tokens)} tokens it is that of training.",
            Formula(PATH),
        ]

    def model_card(self) -> str:
        return (
            "**The model predicts the velocity of the linear path**, from data at t = 0 to noise at t = 1, with times "
            "shifted by the size of the image and, in sampling, by the number of steps (`compute_empirical_mu` of "
            "diffusers' Flux2Pipeline)."
        )
