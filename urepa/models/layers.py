"""Layers that backbones and heads share: dense ones as SiT and REPA begin them, and a change of grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Xavier-uniform, its bias 0: what the published SiT and REPA do to every dense layer (arXiv 2410.06940)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Resize(nn.Module):
    """A map [B,D,h,w] bilinearly to another grid, half-pixel centres."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, map_BDhw: Tensor) -> Tensor:
        if tuple(map_BDhw.shape[-2:]) == self.grid:
            return map_BDhw
        return F.interpolate(map_BDhw, size=self.grid, mode="bilinear", align_corners=False)
