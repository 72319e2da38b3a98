"""The encoder of `flextok`: maps an image's latent to quantised registers, trained so that the first ones carry most
information.

Shapes: B batch, CHW latent, p patch, N patches, K registers, S = N + K, D width, d values of a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from urepa.models.backbones.sit_net import PatchEmbedder, sine_cosine
from urepa.models.fsq import FSQ
from urepa.models.layers import linear
from urepa.models.register_layers import Attention, GatedMLP, Sizes, causal_last_mask, norm, run_block

SPREAD = 0.02  # standard deviation of the learned tokens' initial values


class EncoderBlock(nn.Module):
    """Masked attention and an MLP, each preceded by a LayerNorm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attn, self.mlp, self.eps = Attention(sizes), GatedMLP(sizes), sizes.eps

    def forward(self, x_BSD: Tensor, mask_SS: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attn(norm(x_BSD, self.eps), mask_SS)
        return x_BSD + self.mlp(norm(x_BSD, self.eps))


class Encoder(nn.Module):
    """A transformer over patches and learned registers with the causal-last mask; it maps each register to one code.

    Args:
        latent_shape: C, H, W. patch: p, which divides H and W. registers: K.
        sizes: those of its blocks.
        levels: the quantiser's d levels.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        patch: int,
        registers: int,
        sizes: Sizes,
        levels: Sequence[int],
    ) -> None:
        super().__init__()
        channels, *sides = latent_shape
        width, self.eps = sizes.width, sizes.eps
        grid = sides[0] // patch, sides[1] // patch
        self.patches = grid[0] * grid[1]
        self.x_embedder = PatchEmbedder(channels, patch, width)
        self.registers = nn.Parameter(SPREAD * torch.randn(registers, width))
        self.blocks = nn.ModuleList(EncoderBlock(sizes) for _ in range(sizes.depth))
        self.to_codes = linear(width, len(levels))
        self.quantiser = FSQ(levels)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sine_cosine(grid, width), persistent=False)  # [1,N,D]
        self.mask_SS: Tensor
        self.register_buffer("mask_SS", causal_last_mask(self.patches, registers), persistent=False)

    def forward(self, x0: Tensor, recompute: bool = False) -> Tensor:
        """Maps x0 [B,C,H,W] to quantised vectors [B,K,d] in [-1, 1], fp32. `recompute`: the blocks are computed again
        in the backward pass."""
        patches_BND = self.x_embedder(x0) + self.pos_embed
        x_BSD = torch.cat([patches_BND, self.registers.to(patches_BND.dtype).expand(len(x0), -1, -1)], dim=1)
        for block in self.blocks:
            x_BSD = run_block(block, recompute, x_BSD, self.mask_SS)
        return self.quantiser(self.to_codes(norm(x_BSD[:, self.patches :], self.eps)))
