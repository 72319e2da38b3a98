"""Transformers of diffusers with double-stream blocks, which return (text, image), followed by single-stream blocks,
which return one sequence with the image tokens last.

Shapes: B batch, C channels, H/W latent, h/w = H/2, W/2 grid of image tokens, N = h·w of them, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer, Pass

SIDE = 2  # side of an image token, in latent pixels
AXES = 3  # coordinates of a position: text, row, column


class TwoStreams(DiffusersTransformer):
    """The block lists, and the layers of attention in both streams that get adapters."""

    lists: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    text_alone: ClassVar[str] = r"\.(?:attn\.to_add_out|ff_context)\."
    adapted: ClassVar[str] = DiffusersTransformer.adapted + "|add_q_proj|add_k_proj|add_v_proj|to_add_out"

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        tokens_BND: Tensor = output[1] if isinstance(output, tuple) else output[:, -current.tokens :]
        return tokens_BND

    def with_tokens(self, index: int, output: Any, tokens_BND: Tensor, current: Pass) -> Any:
        if isinstance(output, tuple):
            return output[0], tokens_BND
        return torch.cat([output[:, : -current.tokens], tokens_BND], dim=1)


class PackedTwoStreams(TwoStreams):
    """The same for modules whose tokens each have 2x2 latent pixels in their channels, such as Flux.1's."""

    adapter_files: ClassVar[str | None] = "FluxLoraLoaderMixin"

    @staticmethod
    def channels_of(config: Any) -> int:
        return int(config.in_channels) // SIDE**2

    def grid_of(self, x_t: Tensor) -> tuple[int, int]:
        return x_t.shape[2] // SIDE, x_t.shape[3] // SIDE

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        return unpacked(out, self.grid_of(x_t))


def packed(x_BCHW: Tensor) -> Tensor:
    """Packs latents [B,C,H,W] into tokens [B,N,4C] of 2x2 latent pixels, row by row, channels first in a token."""
    patches = x_BCHW.unflatten(3, (-1, SIDE)).unflatten(2, (-1, SIDE))  # B, C, h, 2, w, 2
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens_BNO: Tensor, grid: tuple[int, int]) -> Tensor:
    """Latents [B,C,H,W] from the tokens of `packed`."""
    patches = tokens_BNO.unflatten(2, (-1, SIDE, SIDE)).unflatten(1, grid)  # B, h, w, C, 2, 2
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """The positions [N,3] of image tokens: 0, the row and the column."""
    height, width = grid
    ids = torch.zeros(height, width, AXES, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)
