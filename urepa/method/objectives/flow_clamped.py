"""A flow whose training times keep a distance from data and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.comparability import DIFFUSION, MEANS_OVER_TIMES, TOTAL
from urepa.core.declared_keys import setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.method.objectives.flow import Flow

if TYPE_CHECKING:
    from urepa.method.objectives.flow_clamped_math import ClampedFlowMath


@dataclass
class FlowClamped(Flow):
    """`Flow` with training times below `lowest` raised to it, and those above `highest` lowered to that."""

    _target_: str = "urepa.method.objectives.flow_clamped.FlowClamped"
    lowest: float = setting(
        "the smallest training time", 0.001, ge=0, le=1, alters=(DIFFUSION, TOTAL, MEANS_OVER_TIMES), unpairs=True
    )
    highest: float = setting(
        "the largest training time", 0.999, ge=0, le=1, alters=(DIFFUSION, TOTAL, MEANS_OVER_TIMES), unpairs=True
    )

    training_only = ("draw", "lowest", "highest")

    def check(self) -> None:
        if self.lowest >= self.highest:
            raise UserError(
                f"objective.lowest={self.lowest} and objective.highest={self.highest}: give a lowest time below the "
                "highest"
            )

    def build(self) -> ClampedFlowMath:
        from urepa.method.objectives.flow_clamped_math import ClampedFlowMath

        return ClampedFlowMath(str(self.path), str(self.draw), self.lowest, self.highest)

    def description(self) -> list[str | Formula]:
        text, formula = super().description()
        return [f"{text} Training times are clamped to [{number(self.lowest)}, {number(self.highest)}].", formula]
