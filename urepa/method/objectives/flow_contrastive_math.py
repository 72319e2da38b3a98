"""The mathematics of `flow_contrastive`.

Shapes: B batch, R rows of it that are predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from urepa.method.losses.loss_math import diffusion_loss
from urepa.method.objectives.flow_math import FlowMath


def partners(batch: int) -> Tensor:
    """The index of each sample's partner [B]: neighbours (0, 1), (2, 3) and so on are each other's. The last sample of
    an odd number has the one before it."""
    own = torch.arange(batch)
    return torch.where((own ^ 1) < batch, own ^ 1, own - 1)


class FlowContrastiveMath(FlowMath):
    """The velocity of the straight path, whose loss is the squared error minus `weight` times the squared distance to
    another sample's velocity (Contrastive Flow Matching, arXiv 2506.05350, eq. 6). The other sample is the neighbour in
    the global batch, which every rank and micro-batch with an even number of samples has. A sample alone has none.

    Args:
        draw: as in `FlowMath`.
        weight: the paper's λ.
    """

    def __init__(self, draw: str, weight: float) -> None:
        super().__init__("linear", draw)
        self.weight = weight

    def diffusion_terms(
        self, prediction_RCHW: Tensor, target: Tensor, t_B: Tensor, rows_R: Tensor | None = None
    ) -> Tensor:
        error_R = super().diffusion_terms(prediction_RCHW, target, t_B, rows_R)
        if len(target) == 1:
            return error_R
        others = target[partners(len(target)).to(target.device)]
        return error_R - self.weight * diffusion_loss(prediction_RCHW, others if rows_R is None else others[rows_R])
