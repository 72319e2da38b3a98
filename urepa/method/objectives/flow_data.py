"""A flow whose backbone predicts the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import DIFFUSION, TOTAL
from urepa.core.declared_keys import TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.method.objectives.flow import DRAWS, FORMULAS, Flow

if TYPE_CHECKING:
    from urepa.method.objectives.flow_data_math import FlowDataMath


@dataclass
class FlowData(Flow):
    """The straight path from data (t = 0) to noise (t = 1); the backbone predicts x0, and the loss is that of the
    velocity that x0 implies (JiT, Li & He 2025, arXiv 2511.13720)."""

    _target_: str = "urepa.method.objectives.flow_data.FlowData"
    least_time: float = setting(
        "smallest time by which x_t - x0 is divided for the velocity", ge=TINY, le=1, alters=(DIFFUSION, TOTAL)
    )

    training_only: ClassVar[tuple[str, ...]] = ("draw",)

    def check(self) -> None:
        if str(self.path) != "linear":
            raise UserError(f"objective.path={self.path}: a prediction of x0 is for the linear path; give linear")

    def build(self) -> FlowDataMath:
        from urepa.method.objectives.flow_data_math import FlowDataMath

        return FlowDataMath(str(self.draw), self.least_time)

    def description(self) -> list[str | Formula]:
        path, _ = FORMULAS[str(self.path)]
        least = number(self.least_time)
        return [
            f"The backbone predicts the data of a {self.path} flow from data (t = 0) to noise (t = 1); t is drawn "
            f"{DRAWS[str(self.draw)]}. The loss is the squared error of the velocity (x_t − y)/max(t, {least}), which "
            "samplers take too: that of the data times a weight of each sample's time:",
            Formula(rf"{path}, \qquad y = x_0, \qquad g(t) = \max(t, {least})^{{-2}}"),
        ]

    def model_card(self) -> str:
        return (
            "**The model predicts the data x0 on the linear path**, from data at t = 0 to noise at t = 1 (the other "
            f"direction than JiT's code). The velocity is (x_t − x0)/max(t, {self.least_time:g})."
        )
