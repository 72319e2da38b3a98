"""The flow of published transformers, with times that are shifted by the size of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.comparability import DIFFUSION, MEANS_OVER_TIMES, TOTAL
from urepa.core.declared_keys import SIZE, TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.method.objectives.flow_shifted import MOST, PATH, ShiftedDraw, check_draw, drawn
from urepa.method.shifted_flow import ShiftedFlow

if TYPE_CHECKING:
    from urepa.method.objectives.flow_shifted_math import SizeShiftedFlowMath

TIMES = (DIFFUSION, TOTAL, MEANS_OVER_TIMES)


@dataclass
class FlowBySize(ShiftedFlow):
    """Prediction of the velocity of the straight path from data (t = 0) to noise (t = 1), at times
    t = s·u/(1 + (s − 1)·u), where s = e^μ and μ is linear in the number of image tokens, as in Flux."""

    _target_: str = "urepa.method.objectives.flow_by_size.FlowBySize"
    draw: ShiftedDraw = setting(
        "how u is drawn in training: uniformly, or as the sigmoid of a normal variable", alters=TIMES, unpairs=True
    )
    draw_mean: float = setting("mean of that normal variable", 0.0, ge=-MOST, le=MOST, alters=TIMES, unpairs=True)
    draw_std: float = setting("its standard deviation", 1.0, ge=TINY, alters=TIMES, unpairs=True)
    base_shift: float = setting("μ at base_tokens", ge=-MOST, le=MOST, alters=TIMES, unpairs=True)
    max_shift: float = setting("μ at max_tokens", ge=-MOST, le=MOST, alters=TIMES, unpairs=True)
    base_tokens: int = setting(
        "number of image tokens at which μ is base_shift", ge=1, le=SIZE, alters=TIMES, unpairs=True
    )
    max_tokens: int = setting(
        "number of image tokens at which μ is max_shift", ge=1, le=SIZE, alters=TIMES, unpairs=True
    )
    token_side: int = setting("side of an image token, in latent pixels", ge=1, le=SIZE, alters=TIMES, unpairs=True)

    def check(self) -> None:
        check_draw(str(self.draw), self.draw_mean, self.draw_std)
        if self.base_tokens >= self.max_tokens:
            raise UserError(
                f"objective.base_tokens={self.base_tokens} is not below objective.max_tokens={self.max_tokens}; give "
                "one that is"
            )

    def build(self) -> SizeShiftedFlowMath:
        from urepa.method.objectives.flow_shifted_math import SizeShiftedFlowMath

        ends = (self.base_shift, self.max_shift, self.base_tokens, self.max_tokens)
        return SizeShiftedFlowMath(str(self.draw), self.draw_mean, self.draw_std, *ends, self.token_side)

    def description(self) -> list[str | Formula]:
        return [
            "The backbone predicts the velocity of a linear flow from data (t = 0) to noise (t = 1). Times are "
            "t = s·u/(1 + (s − 1)·u) with s = e^μ and μ linear in the number of image tokens, from "
            f"{number(self.base_shift)} at {number(self.base_tokens)} to {number(self.max_shift)} at "
            f"{number(self.max_tokens)}; in sampling u is an even grid, in training it is drawn "
            f"{drawn(str(self.draw), self.draw_mean, self.draw_std)}.",
            Formula(PATH),
        ]

    def model_card(self) -> str:
        return (
            "**The model predicts the velocity of the linear path**, from data at t = 0 to noise at t = 1, with times "
            "shifted by the size of the image (`use_dynamic_shifting` of a FlowMatchEulerDiscreteScheduler)."
        )
