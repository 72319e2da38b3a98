"""Contrastive flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import DIFFUSION, TOTAL
from urepa.core.declared_keys import setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.method.objectives.flow import Flow

if TYPE_CHECKING:
    from urepa.method.objectives.flow_contrastive_math import FlowContrastiveMath


@dataclass
class FlowContrastive(Flow):
    """A flow whose predicted velocity is pushed away from that of another sample (Contrastive Flow Matching, Stoica et
    al. 2025, arXiv 2506.05350)."""

    _target_: str = "urepa.method.objectives.flow_contrastive.FlowContrastive"
    weight: float = setting(
        "weight of the squared distance to another sample's velocity, which is subtracted; below 1, or the loss has no "
        "minimum",
        ge=0,
        le=0.99,
        alters=(DIFFUSION, TOTAL),
    )

    training_only: ClassVar[tuple[str, ...]] = ("draw", "weight")
    pairs_samples: ClassVar[bool] = True  # each process needs an even number of samples at a time

    def check(self) -> None:
        if str(self.path) != "linear":
            raise UserError(
                f"objective.path={self.path}: another sample's velocity is for the linear path; give linear"
            )

    def build(self) -> FlowContrastiveMath:
        from urepa.method.objectives.flow_contrastive_math import FlowContrastiveMath

        return FlowContrastiveMath(str(self.draw), self.weight)

    def description(self) -> list[str | Formula]:
        return [
            *super().description(),
            "From each sample's diffusion term the squared distance to the velocity of its neighbour in the batch, "
            f"times {number(self.weight)}, is subtracted:",
            Formula(
                rf"\lVert f_\theta(x_t, t, c) - y \rVert_2^2 - {number(self.weight)}\,"
                r" \lVert f_\theta(x_t, t, c) - \tilde y \rVert_2^2"
            ),
        ]
