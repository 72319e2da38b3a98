"""The mathematics of `released`. Shapes: B batch."""

from __future__ import annotations

import torch
from torch import Tensor

from urepa.core.protocols import ScheduleMath
from urepa.method.losses.released import Released
from urepa.method.losses.urepa_loss_math import AlignmentLoss


class ReleasedLoss(AlignmentLoss):
    """`AlignmentLoss` without the samples that are released.

    Args:
        settings: those of the loss.
        schedule: the shape of λ after its warm-up, with its state in this run.
        max_steps: updates of the run.
    """

    def __init__(self, settings: Released, schedule: ScheduleMath, max_steps: int) -> None:
        super().__init__(settings, schedule)
        self.release_cosine, self.time_power_end = settings.release_cosine, settings.time_power_end
        self.first, self.last = settings.warmup_steps, max_steps - 1

    def time_power_at(self, step: int) -> float:
        """The exponent of a sample's weight by its time, at the update with this index."""
        if self.time_power_end is None:
            return self.time_power
        part = min(max(step - self.first, 0) / max(self.last - self.first, 1), 1.0)
        return self.time_power + part * (self.time_power_end - self.time_power)

    def combined(self, token_B: Tensor, other_B: dict[str, Tensor]) -> Tensor:
        """A sample's token loss, 0 and without gradient where it is released."""
        if self.release_cosine is None:
            return token_B
        return torch.where(token_B.detach() > 1 - self.release_cosine, token_B, 0.0)
