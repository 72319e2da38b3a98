"""SRA: a shallow block's tokens at more noise towards a deeper block's of the averaged weights at less noise.

Jiang, Wang, Li, Zhang, Wang, Wei, Dai, Zhang, Wang 2025, "No Other Representation Component Is Needed", arXiv
2505.02831. L_align = smooth-l1(g(h_k(x_t, t)), h̄_m(x_s, s)) with beta = 0.05, averaged over tokens, their values and
samples; h̄ are states of the exponential moving average of the weights in eval mode, without gradient; s = max(t − u, 0)
with u uniform in [0, 0.2] for each sample; x_s has the noise of x_t, and the condition is the same, dropped where the
student's is. g is a linear layer from D to 2D, SiLU, and one to D, on the student only. Read: the abstract, and the
published code (vvvvvjdy/SRA: SiT-SRA/loss.py, train.py, models/sit.py), from which all settings here are; the paper's
equations and tables were not read.
Published setting: SiT-XL/2 with k the 8th and m the 20th of 28 blocks, λ = 0.2 (from epoch 150 on it falls), EMA decay
0.9999, the EMA that samples are made with. Reported: better than methods with an auxiliary task and close to REPA
(abstract); no figure was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LARGEST, TAP, TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import CONFLICT, Schedule
from urepa.method.losses.no_loss import DIFFUSION
from urepa.method.self_alignment import OwnStates, WithoutTeacher, check_two_states

if TYPE_CHECKING:
    from urepa.method.losses.self_representation_math import SelfRepresentationLoss

LESS_NOISE = "less_noise"  # the purpose of the draw u
SELF = ("self_distance", TOTAL)  # what the settings of the distance alter


@dataclass
class SelfRepresentation(WithoutTeacher):
    """L_diff + λ(step)·smooth-l1(g(h_k(x_t)), h̄_m(x_s)) with averaged weights at less noise s (SRA, arXiv
    2505.02831)."""

    _target_: str = "urepa.method.losses.self_representation.SelfRepresentation"
    student: str = setting("the tap of the trained weights that is aligned", is_a=TAP, alters=SELF)
    teacher: str = setting("the deeper tap of the averaged weights that is the target", is_a=TAP, alters=SELF)
    less_noise: float = setting(
        "the largest step towards the data, as a share of the times, at which the target is; it is uniform from 0 on",
        ge=0,
        le=1,
        alters=SELF,
    )
    beta: float = setting(
        "the difference below which the distance is quadratic, and above which linear", ge=TINY, le=LARGEST, alters=SELF
    )

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("val/self_distance", "distance to itself", "↓", trained_by=("loss.lambda_max",)),
    )
    has_head: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (CONFLICT,)

    @property
    def own_states(self) -> OwnStates:
        return OwnStates(taps=(self.student,), averaged=(self.teacher,), draws=(LESS_NOISE,))

    def check(self) -> None:
        check_two_states(self.student, self.teacher)

    def build(self, *, schedule: Schedule, max_steps: int) -> SelfRepresentationLoss:
        from urepa.method.losses.self_representation_math import SelfRepresentationLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return SelfRepresentationLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            f"The loss aligns the tokens h of {self.student}, behind a head g of its own (linear to twice the width, "
            f"SiLU, linear), with the tokens of {self.teacher} that the exponential moving average of the weights "
            "gives (h with a bar, in eval mode and without gradient) at a time r nearer to the data, with the same "
            "noise and the same condition (SRA). There is no teacher.",
            Formula(r"\mathcal{L} = \mathcal{L}_{\mathrm{diff}} + \lambda(s)\, \mathcal{L}_{\mathrm{self}}"),
            Formula(DIFFUSION),
            Formula(
                r"\mathcal{L}_{\mathrm{self}} = \mathbb{E}\, \operatorname{smooth-l1}_{"
                rf"{number(self.beta)}}}\bigl( g(h^{{k}}(x_t, t)), \bar h^{{m}}(x_r, r) \bigr), \qquad "
                rf"r = \max(t - u, 0), \quad u \sim U(0, {number(self.less_noise)})"
            ),
            *self.over_the_run(schedule, max_steps),
        ]
