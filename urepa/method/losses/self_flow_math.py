"""The mathematics of `self_flow`.

Shapes: B batch, CHW latent, h/w the backbone's grid of patches, N = h·w tokens, D width of the student's state, E of
the target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.types import Batch
from urepa.method.losses.loss_math import token_loss
from urepa.method.losses.self_alignment_math import SelfAlignment, student_and_target
from urepa.method.losses.self_flow import OTHER_TIME, WHICH_TOKENS
from urepa.method.losses.self_representation_math import OwnHead
from urepa.method.objectives.flow_math import FlowMath, linear_path
from urepa.method.objectives.objective_math import ObjectiveMath, shape_of
from urepa.method.token_times import TokenTimes
from urepa.method.training_step import Aligned, Gather
from urepa.models.token_draws import uniform_of_tokens

SAME_FOR_ALL_TIMES = ("target", "loss_weight", "diffusion_terms")  # where an objective has no method of its own


class SelfFlowLoss(SelfAlignment):
    """The token loss of a state behind a head against one of the averaged weights at the smaller of two times."""

    patch = 0  # side of the backbone's patches; 0: not known yet

    def use_patches(self, backbone: Any) -> None:
        """Takes the size of the backbone's patches. Raises UserError if its tokens cannot have times of their own."""
        if not getattr(backbone, "takes_token_times", False):
            raise UserError(
                "loss=self_flow gives each token a time of its own, which of the backbones only a SiT takes: choose "
                "another loss or backbone=sit_*"
            )
        self.patch = backbone.patch

    def heads(self, widths: Mapping[str, int]) -> dict[str, nn.Module]:
        student, teacher = self.settings.student, self.settings.teacher
        return {student: OwnHead(widths[student], widths[teacher])}

    def other_times(self, batch: Batch, objective: Any) -> Tensor:
        """The second time of each sample [B]: one of the quantiles of the training times, by its draw. Raises UserError
        for an objective whose prediction or weight depends on the time."""
        own, base = type(objective), (FlowMath, ObjectiveMath)
        fits = isinstance(objective, FlowMath) and objective.path is linear_path
        if not fits or any(getattr(own, name) not in [getattr(b, name) for b in base] for name in SAME_FOR_ALL_TIMES):
            raise UserError(
                "loss=self_flow noises the tokens of an image at two times, for which the prediction must be the same: "
                "give objective=flow or another that predicts the velocity of the linear path without weights"
            )
        times = 1 - objective.usual_shares(shape_of(batch.x0)).to(batch.t_B.device)  # the path is linear
        quantile_B = (batch.draws[OTHER_TIME].to(batch.t_B.device) * len(times)).long().clamp(max=len(times) - 1)
        return times[quantile_B].to(batch.t_B.dtype)

    def token_times(self, batch: Batch, objective: Any) -> TokenTimes | None:
        """The two times of the samples in training; None where λ is 0 from here to the end, so that the backbone is
        that of `loss=none`."""
        if not batch.is_aligned or self.lambda_max == 0:
            return None
        assert self.patch, "use_patches was called when the heads were built"
        grid = batch.x0.shape[2] // self.patch, batch.x0.shape[3] // self.patch
        drawn_BN = uniform_of_tokens(batch.draws[WHICH_TOKENS].to(batch.x0.device), grid[0] * grid[1])
        second_Bhw = (drawn_BN < self.settings.share).unflatten(1, grid)
        return TokenTimes(batch.t_B, self.other_times(batch, objective), second_Bhw, self.patch)

    def second_times(self, batch: Batch, objective: Any) -> Tensor:
        """The times [B] at which the averaged weights are evaluated."""
        return torch.minimum(batch.t_B, self.other_times(batch, objective))

    def terms(self, output: Aligned, gather: Gather) -> tuple[dict[str, Tensor], Tensor | None]:
        student, target = student_and_target(self.settings, output, output.averaged)
        return {"token": token_loss(student.x_BND, target.x_BND.detach())}, None
