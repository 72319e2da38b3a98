"""The networks of `spatial` and `hidden_spatial`.

Shapes: B batch, N tokens, D width of the tap, E width of the teacher, h/w grid of the tap or the teacher.
"""

from __future__ import annotations

from torch import Tensor, nn

from urepa.core.types import Tokens
from urepa.models.layers import Projector, masked_map, resize, resize_mask


class SpatialHead(Projector):
    """iREPA's projector: one convolution over the tap's grid (Singh et al. 2025, arXiv 2512.10794; there 3x3), then
    bilinear interpolation to the teacher's. Output tokens have unit length, in fp32.

    Args:
        kernel: rows and columns of the kernel, an odd number; the grid is padded with zeros.
        in_width, out_width: D and E.
    """

    def __init__(self, kernel: int, *, in_width: int, out_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_width, out_width, kernel, padding=kernel // 2))

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        map_BEhw = resize(self.layers(masked_map(tapped)), grid)
        tokens_BNE = map_BEhw.flatten(2).transpose(1, 2).float()
        return Tokens(self.scaled(tokens_BNE), grid, resize_mask(tapped, grid))


class HiddenSpatialHead(SpatialHead):
    """The same with a hidden layer: a 3x3 convolution over the tap's grid, SiLU, and a dense layer for each token.

    Args:
        hidden: width between the two.
        in_width, out_width: D and E.
    """

    def __init__(self, hidden: int, *, in_width: int, out_width: int) -> None:
        super().__init__(3, in_width=in_width, out_width=hidden)
        self.layers.extend([nn.SiLU(), nn.Conv2d(hidden, out_width, 1)])
