"""LayerSync: an early block's tokens towards a deeper block's, without a teacher.

Haghighi, van Delft, Hassan, Alahi 2025, arXiv 2510.12581. L_align = −cos(h_k, stop-gradient(h_m)), averaged over tokens
and samples, with k before m; here with 1 added, as the token loss has it. Read: the abstract, and the published code
(vita-epfl/LayerSync, transport/transport.py and the command in its README).
Published setting: SiT-XL/2 with λ = 0.2, k the 8th and m the 16th of 28 blocks, no projection. Reported (abstract):
training 8.75 times as fast on ImageNet 256, quality better by 23.6 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import TAP, setting
from urepa.core.descriptions import Formula
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import CONFLICT, COSINE, Schedule
from urepa.method.losses.no_loss import DIFFUSION
from urepa.method.self_alignment import OwnStates, WithoutTeacher, check_two_states

if TYPE_CHECKING:
    from urepa.method.losses.layer_sync_math import LayerSyncLoss


@dataclass
class LayerSync(WithoutTeacher):
    """L_diff + λ(step)·[1 − cos(h_k, stop-gradient(h_m))] (LayerSync, arXiv 2510.12581)."""

    _target_: str = "urepa.method.losses.layer_sync.LayerSync"
    student: str = setting("the tap that is aligned: its block gets the gradient", is_a=TAP, alters=ALIGNMENT)
    teacher: str = setting("the deeper tap that is the target, without a gradient", is_a=TAP, alters=ALIGNMENT)

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("val/token", "token loss", "↓", trained_by=("loss.lambda_max",)),)
    measures: ClassVar[tuple[str, ...]] = (COSINE, CONFLICT)

    @property
    def own_states(self) -> OwnStates:
        return OwnStates(taps=(self.student, self.teacher))

    def check(self) -> None:
        check_two_states(self.student, self.teacher)

    def build(self, *, schedule: Schedule, max_steps: int) -> LayerSyncLoss:
        from urepa.method.losses.layer_sync_math import LayerSyncLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return LayerSyncLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            f"The loss aligns the tokens of {self.student} with those of {self.teacher} of the same forward pass, "
            "which get no gradient (LayerSync): there is neither a teacher nor a head. h are the tokens, sg stops "
            "gradients.",
            Formula(r"\mathcal{L} = \mathcal{L}_{\mathrm{diff}} + \lambda(s)\, \mathcal{L}_{\mathrm{token}}"),
            Formula(DIFFUSION),
            Formula(
                r"\mathcal{L}_{\mathrm{token}} = \mathbb{E}\, \Bigl[ 1 - \frac{1}{N} \sum_{n=1}^{N}"
                r" \cos\bigl( h^{k}_n, \operatorname{sg}(h^{m}_n) \bigr) \Bigr]"
            ),
            *self.over_the_run(schedule, max_steps),
        ]
