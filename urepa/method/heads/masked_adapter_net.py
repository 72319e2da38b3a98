"""The network of `masked_adapter`.

Shapes: B batch, N tokens, D width of the tap, E width of the teacher, h/w grid of the tap or the target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.models.backbones.sit_net import SPREAD, SiTBlock, TimeEmbedder, sine_cosine
from urepa.models.layers import Projector, linear, resize_tokens
from urepa.models.token_draws import DrawingModule

PURPOSE = "head_mask"


class MaskedAdapterHead(DrawingModule, Projector):
    """Masked tokens, transformer blocks and a projection, then bilinear interpolation to the target's grid. Output
    tokens have unit length, in fp32. In eval mode no token is masked.

    Args:
        share: the probability with which a token is masked in training.
        depth: blocks. heads: their attention heads, which divide D.
        in_width, out_width: D, a multiple of 4, and E.
    """

    def __init__(self, share: float, depth: int, heads: int, *, in_width: int, out_width: int) -> None:
        super().__init__()
        if in_width % heads or in_width % 4:
            raise UserError(
                f"head.heads={heads}: the tap has tokens of width {in_width}, which this head's attention splits; give "
                "a divisor of it, and a tap whose width is a multiple of 4"
            )
        self.share, self.draw_purpose = share, PURPOSE if share else None
        self.mask_token = nn.Parameter(SPREAD * torch.randn(in_width))
        self.time = TimeEmbedder(in_width)
        self.blocks = nn.ModuleList(SiTBlock(in_width, heads, qk_norm=False) for _ in range(depth))
        self.layers = nn.Sequential(
            linear(in_width, in_width), nn.LayerNorm(in_width), nn.SiLU(), linear(in_width, out_width)
        )

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        if tapped.mask_BN is not None:
            raise UserError(
                "head=masked_adapter lets all tokens of a tap attend to each other, and some of this tap's do not "
                "count: choose another head or another tap"
            )
        x_BND, c_BD = self.masked(tapped), self.time(t_B)
        for block in self.blocks:
            x_BND = block(x_BND, c_BD)
        tokens = resize_tokens(Tokens(self.layers(x_BND).float(), tapped.grid), grid)
        return Tokens(self.scaled(tokens.x_BND), grid)

    def masked(self, tapped: Tokens) -> Tensor:
        """The tokens [B,N,D], of which the masked ones are the learned token with their positions. The learned token is
        always in the graph."""
        x_BND = tapped.x_BND
        positions_1ND = sine_cosine(tapped.grid, x_BND.shape[2]).to(x_BND)
        if self.training and self.share:
            masked_BN = self.token_draws(x_BND.shape[1]) < self.share
        else:
            masked_BN = torch.zeros(x_BND.shape[:2], dtype=torch.bool, device=x_BND.device)
        return torch.where(masked_BN[..., None], self.mask_token + positions_1ND, x_BND)
