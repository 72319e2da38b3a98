"""The mathematics of `dispersive`. Shapes: B local batch, G gathered (global) batch, N tokens, D width, K = N·D."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.method.losses.self_alignment_math import SelfAlignment
from urepa.method.training_step import Aligned, Gather


def dispersive_loss(state_GK: Tensor, temperature: float) -> Tensor:
    """log mean exp(−‖z_i − z_j‖² / (K·τ)) over all G² ordered pairs; at most 0. fp32."""
    state_GK = state_GK.float()
    centred_GK = state_GK - state_GK.mean(0)  # distances stay, and the products below lose fewer digits
    gram_GG = centred_GK @ centred_GK.mT
    square_G = gram_GG.diagonal()
    distance_GG = (square_G[:, None] + square_G[None] - 2 * gram_GG).clamp(min=0)
    itself = torch.eye(len(state_GK), dtype=torch.bool, device=state_GK.device)
    distance_GG = distance_GG.masked_fill(itself, 0) / state_GK.shape[1]
    return torch.logsumexp(-distance_GG.flatten() / temperature, 0) - math.log(distance_GG.numel())


class DispersiveLoss(SelfAlignment):
    """The dispersive loss of one state, over the global batch."""

    batch_term = "dispersive"

    def terms(self, output: Aligned, gather: Gather) -> tuple[dict[str, Tensor], Tensor | None]:
        state = output.features[self.settings.tap]
        if state.mask_BN is not None:
            raise UserError(
                f"loss.tap={self.settings.tap} has tokens that do not count, and the dispersive loss compares all "
                "tokens of a sample: give another tap"
            )
        return {}, dispersive_loss(gather(state.x_BND.float().flatten(1)), self.settings.temperature)
