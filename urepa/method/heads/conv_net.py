"""The network of `conv`.

Shapes: B batch, N tokens, D width of the tap, E width of the teacher, h/w grid of the tap or the teacher.
"""

from __future__ import annotations

from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.models.layers import Projector, masked_map, resize, resize_mask


class ConvHead(Projector):
    """`depth` 1x1 convolutions with GELU between them.

    The first has a bias, the others none. At 1280 → 1024 depth 2 has 2,360,320 parameters, depth 1
    1,311,744. Output tokens have unit length, in fp32.

    Args:
        depth: at least 1.
        upsample: "after" projecting (the description's, docs/errata.md; cheaper) or "before".
        in_width, out_width: D and E.
    """

    def __init__(self, depth: int, upsample: str, *, in_width: int, out_width: int) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"head.depth={depth}: a head has at least 1 layer; to train without one, loss=none")
        layers: list[nn.Module] = [nn.Conv2d(in_width, out_width, 1)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Conv2d(out_width, out_width, 1, bias=False)]
        self.before = upsample == "before"
        if self.before:
            layers.insert(0, nn.Identity())  # keys of stored weights start at 1: layer 0 did the resizing
        self.layers = nn.Sequential(*layers)

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        map_BDhw = masked_map(tapped)
        map_BEhw = self.layers(resize(map_BDhw, grid)) if self.before else resize(self.layers(map_BDhw), grid)
        tokens_BNE = map_BEhw.flatten(2).transpose(1, 2).float()
        return Tokens(self.scaled(tokens_BNE), grid, resize_mask(tapped, grid))
