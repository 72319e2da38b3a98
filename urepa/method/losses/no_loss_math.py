"""The mathematics of `no_loss`. Shapes: R rows of the batch that have a diffusion term, here all."""

from __future__ import annotations

from torch import Tensor

from urepa.core.types import Batch
from urepa.method.schedules.shape_math import KnownSchedule, Shape
from urepa.method.training_step import Aligned, Gather, Terms


class NoAlignment(Shape):
    """λ is 0, and there is no teacher."""

    def factor(self, step: int, steps: int) -> float:
        return 0.0

    def teacher_steps(self, *, warmup_steps: int, max_steps: int) -> float:
        return 0


class DiffusionOnly:
    """loss=none: L_diff alone, with neither teacher nor head."""

    taps: dict[str, float] = {}
    lambda_max = 0.0
    diffusion_fraction = 1.0
    time_power = 0.0

    def __init__(self) -> None:
        self.schedule = KnownSchedule(NoAlignment(), 0, 0)

    def lam(self, step: int) -> float:
        return 0.0

    def is_at_peak(self, step: int) -> bool:
        return True

    def is_spike(self, terms: Terms, step: int) -> Tensor | None:
        return None

    def __call__(
        self,
        diffusion_R: Tensor,
        output: Aligned,
        batch: Batch,
        step: int,
        gather: Gather,
        weight_B: Tensor | float = 1.0,
    ) -> Terms:
        return Terms(diffusion_R.mean(), {"diffusion": diffusion_R})
