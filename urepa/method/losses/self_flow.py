"""Self-Flow: tokens of one image at two noise levels, towards a deeper block of the averaged weights at the lower one.

Chefer, Esser, Lorenz, Podell, Raja, Tong, Torralba, Rombach 2026, "Self-Supervised Flow Matching for Scalable
Multi-Modal Synthesis", arXiv 2603.06507. Two times t and s of each image are drawn from the same distribution, and each
token has s with a probability of R and else t (dual-timestep scheduling): its patch is noised, and its adaLN
conditioned, at its own time. The diffusion loss is that of all tokens. L_align = 1 − cos(g(h_k), h̄_m), averaged over
tokens, where h̄_m are states of the exponential moving average of the weights at min(t, s) for all tokens, with the
same noise and condition, without gradient; g is a linear layer from D to 2D, SiLU, and one to D. Read: the abstract,
and another author's implementation (gregoiremrr/self-flow-torch: README, training/loss.py), from which the formulas and
settings are: R = 0.25, weight 0.8, blocks 4 and 8 of 12, EMA decay 0.9999. The paper's equations and tables, and the
authors' code (black-forest-labs/Self-Flow), were not read. Whether the interaction of tokens at other times matters is
disputed: arXiv 2607.02508 (abstract read) finds the gain over SRA to be data augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import TAP, setting
from urepa.core.descriptions import Formula, number
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import CONFLICT, COSINE, Schedule
from urepa.method.losses.no_loss import DIFFUSION
from urepa.method.self_alignment import OwnStates, WithoutTeacher, check_two_states

if TYPE_CHECKING:
    from urepa.method.losses.self_flow_math import SelfFlowLoss

OTHER_TIME, WHICH_TOKENS = "other_time", "which_tokens"  # the purposes of the draws


@dataclass
class SelfFlow(WithoutTeacher):
    """L_diff at two times an image + λ(step)·[1 − cos(g(h_k), h̄_m)] with averaged weights at the smaller one
    (Self-Flow, arXiv 2603.06507)."""

    _target_: str = "urepa.method.losses.self_flow.SelfFlow"
    student: str = setting("the tap of the trained weights that is aligned", is_a=TAP, alters=ALIGNMENT)
    teacher: str = setting("the deeper tap of the averaged weights that is the target", is_a=TAP, alters=ALIGNMENT)
    share: float = setting("the probability with which a token has the second time", ge=0, le=1, alters=ALIGNMENT)

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("val/token", "token loss", "↓", trained_by=("loss.lambda_max",)),)
    has_head: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (COSINE, CONFLICT)

    @property
    def own_states(self) -> OwnStates:
        return OwnStates(taps=(self.student,), averaged=(self.teacher,), draws=(OTHER_TIME, WHICH_TOKENS))

    def check(self) -> None:
        check_two_states(self.student, self.teacher)

    def build(self, *, schedule: Schedule, max_steps: int) -> SelfFlowLoss:
        from urepa.method.losses.self_flow_math import SelfFlowLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return SelfFlowLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            "The loss has two times t and r of each image in training, drawn independently. Each of the image's "
            f"tokens has the second with a probability of {number(self.share)}: its patch is noised, and its "
            f"modulations conditioned, at its own time. The tokens h of {self.student}, behind a head g of its own "
            f"(linear to twice the width, SiLU, linear), are aligned with those of {self.teacher} that the "
            "exponential moving average of the weights gives (h with a bar, in eval mode and without gradient) "
            "with all tokens at the smaller of both times, the same noise and the same condition (Self-Flow). "
            "Validation has one time an image. There is no teacher.",
            Formula(r"\mathcal{L} = \mathcal{L}_{\mathrm{diff}} + \lambda(s)\, \mathcal{L}_{\mathrm{token}}"),
            Formula(DIFFUSION),
            Formula(
                r"\mathcal{L}_{\mathrm{token}} = \mathbb{E}\, \Bigl[ 1 - \frac{1}{N} \sum_{n=1}^{N}"
                r" \cos\bigl( g(h^{k})_n, \bar h^{m}(x_{\min(t, r)}, \min(t, r))_n \bigr) \Bigr]"
            ),
            *self.over_the_run(schedule, max_steps),
        ]
