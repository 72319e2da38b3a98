"""What Self-Transcendence's two stages share (`latent_structure`, `self_transcendence`): the head, and which samples
are aligned.

Shapes: B batch, N tokens, D width, V values of a token's target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.types import Tokens


class Perceptron(nn.Module):
    """A layer from `in_width` to `hidden`, SiLU, one from that to itself, SiLU, and one to `out_width`, for each token
    by itself; its tokens have any length. With `values`, a LayerNorm without weights and a layer to these follow."""

    def __init__(self, in_width: int, hidden: int, out_width: int, values: int | None = None) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_width, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, out_width)
        more = [] if values is None else [nn.LayerNorm(out_width, elementwise_affine=False, eps=1e-6)]
        self.last = nn.Sequential(*more, *([] if values is None else [nn.Linear(out_width, values)]))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # as the published code initialises them
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        x_BND = F.silu(self.linear2(F.silu(self.linear1(tapped.x_BND))))
        return Tokens(self.last(self.linear3(x_BND)), tapped.grid, tapped.mask_BN)


def mean_square(student_BNV: Tensor, target_BNV: Tensor) -> Tensor:
    """The mean squared difference over a sample's tokens and their values [B]. fp32."""
    assert student_BNV.shape == target_BNV.shape, f"{student_BNV.shape} against {target_BNV.shape}"
    return (student_BNV.float() - target_BNV.float()).pow(2).flatten(1).mean(1)


def between(objective: Any, t_B: Tensor, times: Sequence[float]) -> Tensor:
    """1 for samples whose time is between two shares of the way from data to noise, both included, else 0: [B]."""
    share_B = objective.time_fraction(t_B)
    return ((share_B >= times[0]) & (share_B <= times[1])).float()
