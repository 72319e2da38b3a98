"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505, §3): each value of a vector is bounded and rounded
to one of a few levels. The gradient of the rounding is that of the identity.

Shapes: ... any leading sizes, d values of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MARGIN = 1e-3  # the bound exceeds the outermost levels by this, so that tanh reaches them


class FSQ(nn.Module):
    """Quantises vectors. The i-th value of a quantised vector has `levels[i]` possible values in [-1, 1]. A quantised
    vector has an index, at least 0 and below the product of the levels; the first value changes fastest with it. No
    parameters.

    Args:
        levels: d integers, each at least 2, even or odd.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.codes = math.prod(levels)
        levels_d = torch.tensor(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.middle_d: Tensor  # the index of the level 0; divided by it, levels lie in [-1, 1]
        self.register_buffer("middle_d", levels_d // 2, persistent=False)
        self.basis_d: Tensor
        self.register_buffer("basis_d", torch.tensor(basis), persistent=False)
        half_d = (levels_d - 1) * (1 + MARGIN) / 2
        offset_d = torch.where(levels_d % 2 == 0, 0.5, 0.0)
        self.half_d: Tensor
        self.register_buffer("half_d", half_d, persistent=False)
        self.offset_d: Tensor
        self.register_buffer("offset_d", offset_d, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Bounds vectors [...,d] to the range of the levels, plus a small margin."""
        shift_d = torch.atanh(self.offset_d / self.half_d)
        return torch.tanh(z + shift_d) * self.half_d - self.offset_d

    def forward(self, z: Tensor) -> Tensor:
        """Quantises vectors [...,d], in fp32, with the gradient of `bound`."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z.float())
            return (bounded + (bounded.round() - bounded).detach()) / self.middle_d

    def indices(self, quantised: Tensor) -> Tensor:
        """The indices [...] of quantised vectors, int64."""
        levels = (quantised.float() * self.middle_d).round().long() + self.middle_d
        return (levels * self.basis_d).sum(-1)

    def vectors(self, indices: Tensor) -> Tensor:
        """The quantised vectors [...,d] with these indices, in fp32."""
        levels_d = torch.tensor(self.levels, device=indices.device)
        levels = indices.unsqueeze(-1) // self.basis_d % levels_d
        return (levels - self.middle_d).float() / self.middle_d
