"""The mathematics of `haste`. Shapes: B batch, N tokens, A heads, E their width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from urepa.core.protocols import ScheduleMath
from urepa.core.types import Attention, Batch
from urepa.method.losses.haste import ATTENTION, Haste
from urepa.method.losses.urepa_loss_math import AlignmentLoss
from urepa.method.training_step import Aligned


def log_shares(attention: Attention, heads: int) -> Tensor:
    """The logarithms [B,A,N,N] of the shares with which a head's tokens attend to each other, of the first heads. They
    sum to 1 over the last dimension. fp32."""
    q_BANE, k_BANE = attention.q_BANE[:, :heads].float(), attention.k_BANE[:, :heads].float()
    return torch.log_softmax(attention.scale * (q_BANE @ k_BANE.mT), dim=-1)


def attention_loss(student: Attention, teacher: Attention, heads: int | None = None) -> Tensor:
    """The cross-entropy [B] of the teacher's shares with the student's, averaged over heads and tokens.

    Args:
        heads: how many are compared, the first of both; None: as many as both have.
    """
    of_both = min(student.q_BANE.shape[1], teacher.q_BANE.shape[1])
    heads = of_both if heads is None else heads
    assert heads <= of_both, f"{heads} heads of {of_both}"
    assert student.q_BANE.shape[2] == teacher.q_BANE.shape[2], "both attend among the same tokens"
    with torch.autocast(student.q_BANE.device.type, enabled=False):
        p_BANN = log_shares(teacher, heads).exp()
        return -(p_BANN * log_shares(student, heads)).sum(-1).mean((1, 2))


class HasteLoss(AlignmentLoss):
    """`AlignmentLoss` and the attention loss, averaged over pairs of blocks."""

    def __init__(self, settings: Haste, schedule: ScheduleMath) -> None:
        super().__init__(settings, schedule)
        self.attention: Mapping[str, int] = settings.attention
        self.attention_weight, self.attention_heads = settings.attention_weight, settings.attention_heads

    def attention_terms(self, output: Aligned, batch: Batch) -> dict[str, Tensor]:
        pairs_B = [
            attention_loss(output.attention[tap], batch.attention[block], self.attention_heads)
            for tap, block in self.attention.items()
        ]
        return {ATTENTION: torch.stack(pairs_B).mean(0)}

    def combined(self, token_B: Tensor, other_B: dict[str, Tensor]) -> Tensor:
        return token_B + self.attention_weight * other_B[ATTENTION]
