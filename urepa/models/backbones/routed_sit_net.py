"""A SiT some of whose tokens skip blocks in training (TREAD, Krause et al. 2025, arXiv 2501.04765).

Read: the abstract, and the published code (CompVis/tread, routing_module.py and dit.py): a random share of an image's
tokens leaves before block i and is put back as it was behind block j, in training only.

Shapes: B batch, N tokens, M tokens that stay, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from urepa.core.conditions import Condition
from urepa.core.types import Denoised
from urepa.models.backbones.sit_net import SiTNetwork
from urepa.models.token_draws import DrawingModule

PURPOSE = "route"


class RoutedSiTNetwork(DrawingModule, SiTNetwork):
    """`SiTNetwork`, in training mode with a random share of the tokens that skip the blocks `first` to `last`, both
    included. Which tokens do is drawn by address. In eval mode it is the SiT of the same weights.

    Args:
        route: `first` and `last`, counted from 0.
        share: of the tokens that skip, rounded down to whole tokens.
        sizes: as `SiTNetwork`.
    """

    draw_purpose = PURPOSE

    def __init__(self, *sizes: Any, route: tuple[int, int], share: float) -> None:
        super().__init__(*sizes)
        self.share = share
        self._rows_R: Tensor | None = None
        self._whole_BND: Tensor | None = None  # the tokens before the route; None outside of it
        self._stay_BMD: Tensor | None = None
        self.blocks[route[0]].register_forward_pre_hook(self._leave)
        for block in self.blocks[route[0] + 1 : route[1] + 1]:
            block.register_forward_pre_hook(self._within)
        self.blocks[route[1]].register_forward_hook(self._return)

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
        attention: tuple[str, ...] = (),
    ) -> Denoised:
        self._rows_R = rows_R
        return super().forward(x_t, t_B, condition, taps, rows_R, attention)

    def _leave(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The block's inputs with the tokens that stay."""
        if not self.training:
            return None
        x_BND, c, *more = inputs
        draws_BN = self.token_draws(x_BND.shape[1])
        if len(draws_BN) != len(x_BND):  # behind the deepest tap there are the rows with a diffusion term alone
            assert self._rows_R is not None
            draws_BN = draws_BN[self._rows_R]
        stay = x_BND.shape[1] - int(self.share * x_BND.shape[1])
        stay_BM = draws_BN.argsort(dim=1, stable=True)[:, :stay].sort(dim=1).values
        self._whole_BND, self._stay_BMD = x_BND, stay_BM[..., None].expand(-1, -1, x_BND.shape[2])
        return x_BND.gather(1, self._stay_BMD), self._of_those(c), *more

    def _within(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The inputs of a later block of the route, with the conditions of the tokens that stayed."""
        if self._stay_BMD is None:
            return None
        x_BMD, c, *more = inputs
        return x_BMD, self._of_those(c), *more

    def _of_those(self, c: Tensor) -> Tensor:
        """A sample's condition [B,D], or of each token's [B,N,D] those of the tokens that stay."""
        assert self._stay_BMD is not None
        return c if c.ndim == 2 else c.gather(1, self._stay_BMD)

    def _return(self, block: nn.Module, inputs: tuple[Tensor, ...], output_BMD: Tensor) -> Tensor | None:
        """The block's output, with the tokens that left in their places."""
        whole_BND, stay_BMD = self._whole_BND, self._stay_BMD
        if whole_BND is None or stay_BMD is None:
            return None
        self._whole_BND = self._stay_BMD = None
        return whole_BND.to(output_BMD.dtype).scatter(1, stay_BMD, output_BMD)
