"""The decoder of `flextok`: a flow over noised patches, conditioned on an image's registers.

Shapes: B batch, R rows of it, CHW latent, p patch, h/w grid of patches, N = h·w patches, K registers, S = N + K, D
width, d values of a code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from urepa.core.conditions import Part
from urepa.core.types import Denoised, Tokens
from urepa.models.backbones.sit_net import FinalLayer, PatchEmbedder, TimeEmbedder, modulate, modulation, sine_cosine
from urepa.models.layers import linear
from urepa.models.register_layers import Attention, GatedMLP, Sizes, norm, run_block
from urepa.models.time_embedding import sinusoid

SPREAD = 0.02  # standard deviation of the learned tokens' initial values
TIMES, LONGEST = 1000, 256  # the time embedding has TIMES·t at frequencies from 1 down to 1/LONGEST


class FlowTime(TimeEmbedder):
    """Embeds t in [0,1] as a vector."""

    def forward(self, t_B: Tensor) -> Tensor:
        return self.mlp(sinusoid(TIMES * t_B, LONGEST))


class DecoderBlock(nn.Module):
    """Joint attention over patches and registers, and an MLP. The time sets the shift and scale of the LayerNorm before
    each and the gate after it, with separate modulations for patches and registers. Initialised as the identity."""

    def __init__(self, sizes: Sizes, patches: int) -> None:
        super().__init__()
        self.patches, self.eps = patches, sizes.eps
        self.attn, self.mlp = Attention(sizes), GatedMLP(sizes)
        self.patch_modulation, self.register_modulation = (modulation(sizes.width, 6) for _ in range(2))

    def forward(self, x_BSD: Tensor, c_BD: Tensor) -> Tensor:
        by_kind = (self.patch_modulation(c_BD).chunk(6, dim=1), self.register_modulation(c_BD).chunk(6, dim=1))
        x_BSD = x_BSD + self._gated(self.attn(self._modulated(x_BSD, by_kind, 0)), by_kind, 2)
        return x_BSD + self._gated(self.mlp(self._modulated(x_BSD, by_kind, 3)), by_kind, 5)

    def _modulated(self, x_BSD: Tensor, by_kind: tuple[tuple[Tensor, ...], ...], first: int) -> Tensor:
        parts = self._split(norm(x_BSD, self.eps))
        return torch.cat([modulate(x, own[first], own[first + 1]) for x, own in zip(parts, by_kind, strict=True)], 1)

    def _gated(self, x_BSD: Tensor, by_kind: tuple[tuple[Tensor, ...], ...], gate: int) -> Tensor:
        parts = self._split(x_BSD)
        return torch.cat([own[gate][:, None] * x for x, own in zip(parts, by_kind, strict=True)], 1)

    def _split(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return x_BSD[:, : self.patches], x_BSD[:, self.patches :]


class Decoder(nn.Module):
    """A transformer over noised patches and registers. The prediction and the taps contain the patches alone.

    A register that is not kept is replaced by a learned mask token, and all registers of a withheld image by a learned
    null token. A learned embedding of the position is added to each register, or only to those that are kept.

    Args:
        latent_shape: C, H, W. patch: p, which divides H and W. registers: K.
        sizes: those of its blocks.
        code_width: d.
        mask_positions: whether mask and null tokens have a position too.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        patch: int,
        registers: int,
        sizes: Sizes,
        code_width: int,
        mask_positions: bool,
    ) -> None:
        super().__init__()
        channels, height, columns = latent_shape
        width, self.mask_positions = sizes.width, mask_positions
        self.patch, self.grid = patch, (height // patch, columns // patch)
        self.patches = self.grid[0] * self.grid[1]
        self.x_embedder = PatchEmbedder(channels, patch, width)
        self.t_embedder = FlowTime(width)
        self.from_codes = linear(code_width, width)
        self.mask_token = nn.Parameter(SPREAD * torch.randn(width))
        self.null_token = nn.Parameter(SPREAD * torch.randn(width))
        self.register_embed = nn.Parameter(SPREAD * torch.randn(registers, width))
        self.blocks = nn.ModuleList(DecoderBlock(sizes, self.patches) for _ in range(sizes.depth))
        self.final_layer = FinalLayer(width, channels * patch**2)
        self.final_layer.norm_final.eps = sizes.eps
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sine_cosine(self.grid, width), persistent=False)  # [1,N,D]

    def registers_of(self, codes_BKd: Tensor, kept_BK: Tensor, image: Part) -> Tensor:
        """The embedded registers [B,K,D]. Both learned tokens are in the graph of every batch.

        Args:
            kept_BK: True where a register is kept.
            image: the part of the condition that determines which samples have an image.
        """
        registers_BKD, place_KD = self.from_codes(codes_BKd), self.register_embed
        if not self.mask_positions:
            registers_BKD = registers_BKD + place_KD
        registers_BKD = torch.where(kept_BK[..., None], registers_BKD, self.mask_token)
        registers_BKD = image.where_given(registers_BKD, self.null_token)
        return registers_BKD + place_KD if self.mask_positions else registers_BKD

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        registers_BKD: Tensor,
        tap_of: dict[int, str],
        rows_R: Tensor | None = None,
        recompute: bool = False,
    ) -> Denoised:
        """
        Args:
            tap_of: the names of the taps, by the index of the block whose output they are.
            rows_R: the indices of the samples to predict (None: all). The blocks after the deepest tap process only
                these, and if there are none the forward stops there. Taps always have the whole batch.
            recompute: the blocks are computed again in the backward pass.
        """
        deepest = max(tap_of, default=-1)
        features: dict[str, Tokens] = {}
        c_BD = self.t_embedder(t_B)
        x_BSD = torch.cat([self.x_embedder(x_t) + self.pos_embed, registers_BKD], dim=1)
        for k, block in enumerate(self.blocks[: deepest + 1]):
            x_BSD = run_block(block, recompute, x_BSD, c_BD)
            if k in tap_of:
                patches_BND, others_BKD = x_BSD[:, : self.patches], x_BSD[:, self.patches :]
                features[tap_of[k]] = Tokens(patches_BND, self.grid)
                x_BSD = torch.cat([patches_BND, others_BKD], dim=1)  # the tap itself is in the graph of the prediction
        if rows_R is not None:
            if len(rows_R) == 0:
                return Denoised(x_t[:0], features)
            x_BSD, c_BD = x_BSD[rows_R], c_BD[rows_R]
        for block in self.blocks[deepest + 1 :]:
            x_BSD = run_block(block, recompute, x_BSD, c_BD)
        return Denoised(self._unpatchify(self.final_layer(x_BSD[:, : self.patches], c_BD)), features)

    def _unpatchify(self, x_BNO: Tensor) -> Tensor:
        """Tokens of p·p·C values, channels last, to [B,C,H,W]."""
        patches = x_BNO.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, self.grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
