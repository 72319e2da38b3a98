"""HASTE's holistic alignment: REPA's loss, and blocks that attend as blocks of the teacher do.

Wang, Zhao, Zhou, Li, Liang, Shi, Zhao, Zhou, Zhang, Wang, Wang, You 2025, "REPA Works Until It Doesn't", arXiv
2505.16792. L_attn is the cross-entropy −Σ_n p(n|m) log q(n|m), averaged over queries m, heads and pairs of blocks,
where p are the teacher's attention maps among patches (the class token's row and column removed and the rest
normalised again) and q the student's, head by head. Its second part, one end for all alignment, is
`schedule.stop_step`. Read: the abstract, and the README of the published code with its command (NUS-HPC-AI-Lab/HASTE,
whose code itself was not at hand); the cross-entropy of softmaxes, the removed class token, the pairs of blocks and the
pairing of the first heads were read in two implementations by others, and not in the paper.
Published setting (README): SiT-XL/2, DINOv2-B, λ = 0.5 for both terms, features at the 8th block, an end after 250,000
updates; the 5th to 8th of 28 blocks towards the 9th to 12th of the teacher's 12 and, of SiT-B's, the 2nd to 4th towards
the 10th to 12th (those implementations). Reported (abstract): the FID of SiT-XL/2 after 50 epochs, REPA's best after
500.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LARGEST, SIZE, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import Schedule
from urepa.method.losses.urepa_loss import URepaLoss

if TYPE_CHECKING:
    from urepa.method.losses.haste_math import HasteLoss

ATTENTION = "attention"
OF_ATTENTION = (ATTENTION, TOTAL)  # what the settings of the attention alter


@dataclass
class Haste(URepaLoss):
    """L_diff + λ(step)·[L_token + w·L_manifold + a·L_attn] (HASTE, arXiv 2505.16792). The teacher runs during training,
    as its attention is not cached."""

    _target_: str = "urepa.method.losses.haste.Haste"
    attention: dict[str, int] = setting(
        "the taps whose blocks attend as the teacher's do, each with the number of the teacher's block, from 0",
        ge=0,
        le=SIZE,
        alters=OF_ATTENTION,
    )
    attention_weight: float = setting(
        "a: the weight of the attention loss beside the token loss", 1.0, ge=0, le=LARGEST, alters=(TOTAL,)
    )
    attention_heads: int | None = setting(
        "how many heads are compared, the first of both; null: as many as both have",
        None,
        ge=1,
        le=SIZE,
        alters=OF_ATTENTION,
    )

    metrics: ClassVar[tuple[Metric, ...]] = (
        *URepaLoss.metrics,
        Metric(
            *("val/attention", "attention loss", "↓"),
            rests_on=("teacher",),  # whose settings alter the token loss alone
            trained_by=("loss.lambda_max", "loss.attention_weight"),
        ),
    )

    def check(self) -> None:
        super().check()
        if not self.attention:
            raise UserError("loss.attention: give at least one tap and a block of the teacher, or choose loss=repa")

    def check_teachers(self, names: Collection[str]) -> None:
        super().check_teachers(names)
        if names:
            raise UserError("loss.attention is compared with that of one teacher: choose one, teacher=NAME")

    def build(self, *, schedule: Schedule, max_steps: int) -> HasteLoss:
        from urepa.method.losses.haste_math import HasteLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return HasteLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        pairs = ", ".join(f"{tap} with the teacher's {number(block)}" for tap, block in self.attention.items())
        heads = "the first heads" if self.attention_heads is None else f"the first {number(self.attention_heads)} heads"
        blocks = super().description(schedule=schedule, max_steps=max_steps)
        return [
            *blocks,
            f"In the bracket a = {number(self.attention_weight)}. L_attn compares the attention of blocks, {heads} of "
            f"both one by one: {pairs}, counted from 0. p are the shares with which the teacher's patches attend to "
            "each other, without class and register tokens, and q those of the backbone's tokens; the mean is over "
            "samples, pairs of blocks, heads and tokens m.",
            Formula(r"\mathcal{L}_{\mathrm{attn}} = -\mathbb{E} \sum_{n} p_{mn} \log q_{mn}"),
        ]

    def _bracket(self, manifold: str) -> str:
        return rf"{super()._bracket(manifold)} + a\, \mathcal{{L}}_{{\mathrm{{attn}}}}"

    def model_card(self) -> str:
        return f"{super().model_card()}, and a = {self.attention_weight:g} for attention"
