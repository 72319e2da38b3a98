"""A SiT that denoises a class token with the image (REG, Wu et al. 2025, arXiv 2507.01467).

Read: what `urepa.method.losses.reg` names, and code by others that derives from the published one, with its names: the
noised class token passes a linear layer and a LayerNorm and is put before the patches' tokens, with a position of 0;
the norm before the output is over all tokens, and the class token has an output layer of its own, initialised to 0.

Shapes: B batch, R rows of it, C channels, H/W latent, N patches, D width, E values of the class token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.types import Denoised, Tokens
from urepa.models.backbones.sit_net import EPS, SiTNetwork, modulate
from urepa.models.layers import linear

WITHOUT = (
    "this backbone denoises a class token of the teacher with the image (backbone.class_token), and there is none for "
    "images that are noised outside of training and its validation: leave this out; samples have one"
)


class ClassTokenSiTNetwork(SiTNetwork):
    """`SiTNetwork` with one more token in all blocks, whose weights are drawn last.

    Args:
        sizes: as `SiTNetwork`.
        class_token: E.
    """

    def __init__(self, *sizes: Any, class_token: int) -> None:
        super().__init__(*sizes)
        self.class_values = class_token
        self.cls_projectors2, self.wg_norm = linear(class_token, self.width), nn.LayerNorm(self.width, eps=EPS)
        output = self.final_layer.linear_cls = nn.Linear(self.width, class_token)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)

    def _tapped(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The patches' tokens, and all tokens as a function of them, so that they have the gradient of what follows."""
        class_B1D, patches_BND = x_BND.split([1, x_BND.shape[1] - 1], dim=1)
        return patches_BND, torch.cat([class_B1D, patches_BND], dim=1)

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
        attention: tuple[str, ...] = (),
        class_BE11: Tensor | None = None,
    ) -> Denoised:
        if class_BE11 is None:
            raise UserError(WITHOUT)
        assert not attention, "declared backbones with a class token hand out no attention"
        grid = self.grid_of(x_t)
        class_B1D = self.wg_norm(self.cls_projectors2(class_BE11.flatten(1)))[:, None]
        tokens_BND = torch.cat([class_B1D, self.x_embedder(x_t) + self.positions_of(grid)], dim=1)
        c_BD = self._conditioned(t_B, condition)
        x_RND, c_RD, states, _ = self._through_blocks(tokens_BND, c_BD, taps, rows_R)
        features = {tap: Tokens(state_BND, grid) for tap, state_BND in states.items()}
        if len(x_RND) == 0:
            return Denoised(x_t[:0], features, class_RE11=class_BE11[:0])
        normed_RND = modulate(
            self.final_layer.norm_final(x_RND), *self.final_layer.adaLN_modulation(c_RD).chunk(2, dim=-1)
        )
        prediction_RCHW = self._unpatchify(self.final_layer.linear(normed_RND[:, 1:]), grid)
        class_RE = self.final_layer.get_submodule("linear_cls")(normed_RND[:, 0])
        return Denoised(prediction_RCHW, features, class_RE11=class_RE[..., None, None])
