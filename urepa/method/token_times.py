"""Two times for the tokens of an image.

Shapes: B batch, CHW latent, h/w the backbone's grid of patches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from urepa.core.types import Batch


class TokenTimes(NamedTuple):
    """The times [B] of each sample, which tokens have the second [B,h,w], and the side of a patch in latent pixels."""

    first_B: Tensor
    second_B: Tensor
    second_Bhw: Tensor
    patch: int

    def times(self) -> Tensor:
        """The time of each token [B,h,w]."""
        return torch.where(self.second_Bhw, self.second_B[:, None, None], self.first_B[:, None, None])

    def corrupt(self, objective: Any, x0: Tensor, noise: Tensor) -> Tensor:
        """x_t, each patch at its own time."""
        second_B1HW = self.second_Bhw.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)[:, None]
        first, second = (objective.corrupt(x0, noise, t_B) for t_B in (self.first_B, self.second_B))
        return torch.where(second_B1HW, second, first)


def noised(model: Any, objective: Any, loss: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """x_t and the times of a batch: [B], or in training [B,h,w] with a loss whose `token_times(batch, objective)` gives
    its tokens times of their own."""
    asks = getattr(loss, "token_times", None)
    own = asks(batch, objective) if asks is not None and getattr(model, "training", True) else None
    if own is None:
        return objective.corrupt(batch.x0, batch.noise, batch.t_B), batch.t_B
    return own.corrupt(objective, batch.x0, batch.noise), own.times()
