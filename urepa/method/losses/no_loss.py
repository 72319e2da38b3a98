"""loss=none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.descriptions import Formula
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import Schedule

if TYPE_CHECKING:
    from urepa.method.losses.no_loss_math import DiffusionOnly

IDLE = ("head", "teacher", "schedule", "optimizer.*.head")
DIFFUSION = r"\mathcal{L}_{\mathrm{diff}} = \mathbb{E}\, \frac{1}{CHW} \lVert f_\theta(x_t, t, c) - y \rVert_2^2"


@dataclass
class NoLoss:
    """The diffusion term alone, with neither teacher nor head."""

    _target_: str = "urepa.method.losses.no_loss.NoLoss"

    alters: ClassVar[tuple[str, ...]] = ALIGNMENT
    metrics: ClassVar[tuple[Metric, ...]] = ()
    taps: ClassVar[Mapping[str, float]] = {}
    lambda_max: ClassVar[float] = 0.0
    diffusion_fraction: ClassVar[float] = 1.0

    def check(self) -> None:
        """Nothing to check: there are no settings."""

    def check_teachers(self, names: Collection[str]) -> None:
        """Nothing to check: the loss has no weights of teachers."""

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """Nothing to check: samples are not compared with each other."""

    def check_schedule(self, schedule: Schedule, max_steps: int) -> None:
        """Nothing to check: the loss has no λ."""

    def idle_keys(self) -> dict[str, str | None]:
        return dict.fromkeys(IDLE, "loss=none, which has neither teacher nor head")

    def build(self, *, schedule: Schedule, max_steps: int) -> DiffusionOnly:
        from urepa.method.losses.no_loss_math import DiffusionOnly

        return DiffusionOnly()

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            "The loss is the diffusion term alone: nothing is aligned, and there is neither teacher nor head.",
            Formula(rf"\mathcal{{L}} = {DIFFUSION}"),
        ]

    def model_card(self) -> str:
        return ""
