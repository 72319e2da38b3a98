"""Layers that backbones and heads share: dense ones as SiT and REPA begin them, and a change of grid."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.types import Tokens


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Xavier-uniform, its bias 0: what the published SiT and REPA do to every dense layer (arXiv 2410.06940)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def resize(map_BDhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map bilinearly to a grid, half-pixel centres."""
    if tuple(map_BDhw.shape[-2:]) == grid:
        return map_BDhw
    return F.interpolate(map_BDhw, size=grid, mode="bilinear", align_corners=False)


def masked_map(tokens: Tokens) -> Tensor:
    """A map [B,D,h,w] of the tokens, 0 where they are masked, as a convolution sees what lies outside of the map."""
    if tokens.mask_BN is None:
        return tokens.to_map()
    return replace(tokens, x_BND=tokens.x_BND.masked_fill(~tokens.mask_BN[..., None], 0)).to_map()


def resize_tokens(tokens: Tokens, grid: tuple[int, int]) -> Tokens:
    """Tokens [B,N,D] bilinearly to a grid (h, w): [B,h·w,D] in fp32, not of unit length, with the mask of
    `resize_mask`. On their own grid they are left as they are."""
    if tokens.grid == grid:
        return tokens
    map_BDhw = resize(masked_map(tokens.float()), grid)
    return Tokens(map_BDhw.flatten(2).transpose(1, 2), grid, resize_mask(tokens, grid))


def resize_mask(tokens: Tokens, grid: tuple[int, int]) -> Tensor | None:
    """The mask [B,h·w] of what `resize` makes of the tokens: True where all that it is interpolated from counts."""
    if tokens.mask_BN is None or tokens.grid == grid:
        return tokens.mask_BN
    masked_B1hw = (~tokens.mask_BN).unflatten(1, tokens.grid)[:, None].float()
    return (resize(masked_B1hw, grid) == 0).flatten(1)
