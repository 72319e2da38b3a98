"""The mathematics of `latent_structure`. Shapes: B batch, N patches, V values of a patch, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.types import Batch, Tokens
from urepa.method.losses.own_head_math import Perceptron, between, mean_square
from urepa.method.losses.self_alignment_math import SelfAlignment
from urepa.method.self_alignment import OWN, PATCH
from urepa.method.training_step import Aligned, Gather

TARGET, COUNTS = "target", "counts"


def patches(x_BCHW: Tensor, grid: tuple[int, int]) -> Tokens:
    """The patches of a latent as tokens [B,N,V] on a grid whose cells are squares."""
    side = x_BCHW.shape[2] // grid[0]
    assert (grid[0] * side, grid[1] * side) == x_BCHW.shape[2:], f"{tuple(x_BCHW.shape)} has no patches on {grid}"
    return Tokens.from_map(F.pixel_unshuffle(x_BCHW, side))


class LatentStructureLoss(SelfAlignment):
    """The mean squared difference of a state behind a head to the patches of the clean latent or the prediction."""

    def heads(self, widths: Mapping[str, int]) -> dict[str, nn.Module]:
        width = widths[self.settings.student]
        return {self.settings.student: Perceptron(width, self.settings.hidden, width, widths[PATCH])}

    def known(self, batch: Batch, objective: Any) -> dict[str, Tensor]:
        is_x0 = str(self.settings.target) == "x0"
        target = batch.x0 if is_x0 else objective.target(batch.x0, batch.noise, batch.t_B)
        return {TARGET: target, COUNTS: between(objective, batch.t_B, self.settings.times)}

    def terms(self, output: Aligned, gather: Gather) -> tuple[dict[str, Tensor], Tensor | None]:
        student = output.tokens[f"{self.settings.student}/{OWN}"]
        target_BNV = patches(output.known[TARGET], student.grid).x_BND
        return {"latents": output.known[COUNTS] * mean_square(student.x_BND, target_BNV)}, None
