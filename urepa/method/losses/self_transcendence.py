"""Self-Transcendence, second stage: a block's state towards a deeper block of a frozen earlier model of the same kind,
with classifier-free guidance of that state.

Sun, Wu, Zhang, Li, Sun, Liu, Zhang 2026, arXiv 2601.07773. L_align = mean squared difference of f(h_k(x_t, t)) and
ū + s·(c̄ − ū), where c̄ and ū are states of the frozen model's block m at the same x_t and t, under the sample's
condition and without one, in eval mode and without gradient; averaged over tokens and their values, and over samples,
of which those outside of the times count as 0. f is a perceptron with three layers. The frozen model is the end of the
first stage (`latent_structure`); the new one is trained from the start. Read: the abstract, and the published code
(csslc/Self-Transcendence: loss.py, models/sit_selftrans_model.py, train_selftrans.py and .sh), from which all settings
here are; the paper's equations and tables were not read. The code's frozen model has the weights of the first stage's
training, here their moving average, of which validation and samples are made too. As there, its condition is the
sample's also where training withholds the student's.
Published setting (train_selftrans.sh, defaults of train_selftrans.py): SiT-B/2, λ = 0.5, k the 6th and m the 8th of 12
blocks, s = 30, times 0.4 to 0.7, hidden width 2048, until update 100,000. Reported (abstract): better than REPA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LARGEST, SIZE, TAP, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import CONFLICT, Schedule
from urepa.method.losses.no_loss import DIFFUSION
from urepa.method.self_alignment import OwnStates, WithoutTeacher, check_share_of_times

if TYPE_CHECKING:
    from urepa.method.losses.self_transcendence_math import SelfTranscendenceLoss

OF_GUIDE = ("guided_distance", TOTAL)  # what the settings of the term alter


@dataclass
class SelfTranscendence(WithoutTeacher):
    """L_diff + λ(step)·|f(h_k) − (ū + s·(c̄ − ū))|² with states of a frozen earlier model (Self-Transcendence's second
    stage, arXiv 2601.07773)."""

    _target_: str = "urepa.method.losses.self_transcendence.SelfTranscendence"
    guide: str | None = setting(
        "the frozen model: the folder of a run of the same backbone, or a file of its weights", None, alters=OF_GUIDE
    )
    student: str = setting("the tap that is aligned", is_a=TAP, alters=OF_GUIDE)
    teacher: str = setting("the tap of the frozen model that is the target", is_a=TAP, alters=OF_GUIDE)
    guidance: float = setting(
        "s: the strength of guidance of the target; 1: the state under the condition", ge=0, le=LARGEST, alters=OF_GUIDE
    )
    times: list[float] = setting(
        "from and to: shares of the way from data to noise between which samples are aligned",
        ge=0,
        le=1,
        alters=OF_GUIDE,
    )
    hidden: int = setting("width of the head's hidden layers", ge=1, le=SIZE)

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("val/guided_distance", "distance to the guide", "↓", trained_by=("loss.lambda_max",)),
    )
    has_head: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (CONFLICT,)

    @property
    def own_states(self) -> OwnStates:
        return OwnStates(taps=(self.student,), frozen=(self.teacher,))

    def check(self) -> None:
        check_share_of_times(self.times)
        if not self.guide:
            raise UserError(
                "loss=self_transcendence needs the run of its first stage: loss.guide=FOLDER, as of a run of "
                "loss=latent_structure"
            )

    def build(self, *, schedule: Schedule, max_steps: int) -> SelfTranscendenceLoss:
        from urepa.method.losses.self_transcendence_math import SelfTranscendenceLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return SelfTranscendenceLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            f"The loss aligns the tokens h of {self.student}, behind a head f of its own (a perceptron of three layers "
            f"of hidden width {number(self.hidden)}), with the tokens of {self.teacher} of a frozen model, the end of "
            f"the run {self.guide}, at the same input (Self-Transcendence, second stage): c with a bar under the "
            "sample's condition, u with a bar without one, in eval mode and without gradient. It does so where a "
            f"sample's time is between the shares {number(self.times[0])} and {number(self.times[1])} of the way from "
            "data to noise; elsewhere the sample's term is 0. There is no other teacher.",
            Formula(r"\mathcal{L} = \mathcal{L}_{\mathrm{diff}} + \lambda(s)\, \mathcal{L}_{\mathrm{guide}}"),
            Formula(DIFFUSION),
            Formula(
                r"\mathcal{L}_{\mathrm{guide}} = \mathbb{E}\, 1_{t}\, \tfrac{1}{d} \bigl\lVert f(h^{k}(x_t, t)) -"
                rf" (\bar u^{{m}} + {number(self.guidance)}\, (\bar c^{{m}} - \bar u^{{m}})) \bigr\rVert^2"
            ),
            *self.over_the_run(schedule, max_steps),
        ]
