"""The mathematics of `self_representation`, and the head of its student.

Shapes: B batch, N tokens, D width of the student's state, E of the target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.types import Batch, Tokens
from urepa.method.losses.self_alignment_math import SelfAlignment, student_and_target
from urepa.method.losses.self_representation import LESS_NOISE
from urepa.method.training_step import Aligned, Gather


class OwnHead(nn.Module):
    """A linear layer from D to D + E, SiLU, and one to E, for each token by itself; its tokens have any length."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_width, in_width + out_width)
        self.linear2 = nn.Linear(in_width + out_width, out_width)
        for layer in (self.linear1, self.linear2):  # as the published code initialises all linear layers
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens:
        return Tokens(self.linear2(F.silu(self.linear1(tapped.x_BND))), tapped.grid, tapped.mask_BN)


def smooth_l1(student_BND: Tensor, target_BND: Tensor, beta: float) -> Tensor:
    """The mean over a sample's tokens and their values [B] of d²/(2·beta) where |d| < beta and |d| − beta/2 elsewhere,
    d the difference. fp32."""
    return F.smooth_l1_loss(student_BND.float(), target_BND.float(), beta=beta, reduction="none").flatten(1).mean(1)


def nearer_to_data(objective: Any, t_B: Tensor, by_B: Tensor) -> Tensor:
    """Times [B] by these shares of all times nearer to the data than t [B], in t's type, but not beyond the first."""
    first, last = objective.time_at(0.0), objective.time_at(1.0)
    step_B = by_B.to(t_B.device) * (last - first)
    nearer_B = t_B - (step_B if t_B.is_floating_point() else step_B.round()).to(t_B.dtype)
    return torch.clamp(nearer_B, min=first)


class SelfRepresentationLoss(SelfAlignment):
    """The smooth l1 distance of a state behind a head to a state of the averaged weights at less noise."""

    def heads(self, widths: Mapping[str, int]) -> dict[str, nn.Module]:
        student, teacher = self.settings.student, self.settings.teacher
        return {student: OwnHead(widths[student], widths[teacher])}

    def second_times(self, batch: Batch, objective: Any) -> Tensor:
        """The times s [B] at which the averaged weights are evaluated."""
        return nearer_to_data(objective, batch.t_B, self.settings.less_noise * batch.draws[LESS_NOISE])

    def terms(self, output: Aligned, gather: Gather) -> tuple[dict[str, Tensor], Tensor | None]:
        student, target = student_and_target(self.settings, output, output.averaged)
        return {"self_distance": smooth_l1(student.x_BND, target.x_BND.detach(), self.settings.beta)}, None
