"""The networks of `mlp`, `mlp_resized` and `time_mlp`.

Shapes: B batch, N tokens, D width of the tap, H width within the head, E width of the teacher, h/w the tap's grid.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.models.layers import Projector, linear, resize_tokens
from urepa.models.time_embedding import SINUSOID, sinusoid


class MLPHead(Projector):
    """REPA's projector: three dense layers with SiLU between them, on each token by itself (arXiv
    2410.06940, §3.2). Its first weights are Xavier-uniform, as in the authors' code. Output tokens have unit length,
    in fp32.

    It never resizes: a tap on another grid than the teacher's is a UserError.

    Args:
        hidden: width of the two inner layers; REPA's is 2048.
        in_width, out_width: D and E.
    """

    def __init__(self, hidden: int, *, in_width: int, out_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            linear(in_width, hidden),
            nn.SiLU(),
            linear(hidden, hidden),
            nn.SiLU(),
            linear(hidden, out_width),
        )

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        if tapped.grid != grid:
            own, targets = ("x".join(map(str, sides)) for sides in (tapped.grid, grid))
            raise UserError(
                f"the tap has {own} tokens and the teacher {targets}, and head=repa_mlp resizes neither: give a "
                "teacher.grid (and image_size) or backbone.patch that fits, loss.grid=student, or head=conv"
            )
        return Tokens(self.scaled(self.project(tapped.x_BND, t_B).float()), grid, tapped.mask_BN)

    def project(self, x_BND: Tensor, t_B: Tensor) -> Tensor:
        """The projected tokens [B,N,E], before normalisation."""
        return self.layers(x_BND)


class ResizedMLPHead(MLPHead):
    """`MLPHead` followed by bilinear interpolation (half-pixel centres) of the projected tokens to the teacher's
    grid.

    Args: those of `MLPHead`.
    """

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        projected = replace(tapped, x_BND=self.project(tapped.x_BND, t_B).float())
        resized = resize_tokens(projected, grid)
        return replace(resized, x_BND=self.scaled(resized.x_BND))


class TimeMLPHead(MLPHead):
    """REPA's projector, conditioned on the time, because a tap's information about the image depends on the noise. The
    output x of each of the two inner layers becomes x·(1 + scale(t)) + shift(t): adaLN's modulation (Peebles & Xie
    2023, §3.2) without its LayerNorm. Two dense layers compute scale and shift from the sinusoid of the objective's own
    time, which backbones take too. The last is initialised to zero, so that the head initially equals `MLPHead` with
    the same weights.

    Args: those of `MLPHead`.
    """

    def __init__(self, hidden: int, *, in_width: int, out_width: int) -> None:
        super().__init__(hidden, in_width=in_width, out_width=out_width)
        last = nn.Linear(SINUSOID, 4 * hidden)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.time = nn.Sequential(nn.Linear(SINUSOID, SINUSOID), nn.SiLU(), last)

    def project(self, x_BND: Tensor, t_B: Tensor) -> Tensor:
        scale_1, shift_1, scale_2, shift_2 = self.time(sinusoid(t_B)).unsqueeze(1).chunk(4, dim=2)  # [B,1,H] each
        x_BNH = self.layers[:2](x_BND) * (1 + scale_1) + shift_1
        x_BNH = self.layers[2:4](x_BNH) * (1 + scale_2) + shift_2
        return self.layers[4](x_BNH)
