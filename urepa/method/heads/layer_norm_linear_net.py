"""The network of `layer_norm_linear`.

Shapes: B batch, N tokens, D width of the tap, E width of the teacher, h/w grid of the tap or the target.
"""

from __future__ import annotations

from torch import Tensor, nn

from urepa.core.types import Tokens
from urepa.models.layers import Projector, linear, resize_tokens


class LayerNormLinearHead(Projector):
    """LayerNorm over D and a dense layer to E on each token by itself, then bilinear interpolation to the target's
    grid. The dense layer is initialised as REPA's are (`urepa.models.layers.linear`). Output tokens have unit length,
    in fp32.

    Args:
        in_width, out_width: D and E.
    """

    def __init__(self, *, in_width: int, out_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(in_width), linear(in_width, out_width))

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        x_BND, mask_BN = tapped.x_BND, tapped.mask_BN
        if mask_BN is not None:  # the values of masked tokens must not affect gradients
            x_BND = x_BND.masked_fill(~mask_BN[..., None], 0)
        projected = Tokens(self.layers(x_BND).float(), tapped.grid, mask_BN)
        tokens = resize_tokens(projected, grid)
        return Tokens(self.scaled(tokens.x_BND), grid, tokens.mask_BN)
