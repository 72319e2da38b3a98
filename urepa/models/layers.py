"""Layers shared by backbones and heads: linear layers with the initialisation of SiT and REPA, and resizing to a
grid."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.types import Tokens
from urepa.models.unit_vectors import unit_vectors


class Projector(nn.Module):
    """The base class of heads' networks. Output tokens have unit length, unless `unit_length` is set to False for a
    loss that compares lengths."""

    unit_length: bool = True

    def scaled(self, x_BNE: Tensor) -> Tensor:
        """Projected tokens as the head returns them."""
        return unit_vectors(x_BNE) if self.unit_length else x_BNE


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and zero bias, the initialisation of every linear layer in the
    published SiT and REPA (arXiv 2410.06940)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def unit_length(tokens: Tokens) -> Tokens:
    """The tokens, each divided by its length."""
    return replace(tokens, x_BND=F.normalize(tokens.x_BND, dim=-1))


def resize(map_BDhw: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map resized bilinearly to a grid, with half-pixel centres."""
    if tuple(map_BDhw.shape[-2:]) == grid:
        return map_BDhw
    return F.interpolate(map_BDhw, size=grid, mode="bilinear", align_corners=False)


def masked_map(tokens: Tokens) -> Tensor:
    """The tokens as a map [B,D,h,w], 0 where they are masked, like a convolution's zero padding."""
    if tokens.mask_BN is None:
        return tokens.to_map()
    return replace(tokens, x_BND=tokens.x_BND.masked_fill(~tokens.mask_BN[..., None], 0)).to_map()


def resize_tokens(tokens: Tokens, grid: tuple[int, int]) -> Tokens:
    """Tokens [B,N,D] resized bilinearly to a grid (h, w): [B,h·w,D] in fp32, not normalised, with the mask of
    `resize_mask`. Tokens that have this grid are returned unchanged."""
    if tokens.grid == grid:
        return tokens
    map_BDhw = resize(masked_map(tokens.float()), grid)
    return Tokens(map_BDhw.flatten(2).transpose(1, 2), grid, resize_mask(tokens, grid))


def resize_mask(tokens: Tokens, grid: tuple[int, int]) -> Tensor | None:
    """The mask [B,h·w] of the resized tokens: True where no masked token is part of the interpolation."""
    if tokens.mask_BN is None or tokens.grid == grid:
        return tokens.mask_BN
    masked_B1hw = (~tokens.mask_BN).unflatten(1, tokens.grid)[:, None].float()
    return (resize(masked_B1hw, grid) == 0).flatten(1)
