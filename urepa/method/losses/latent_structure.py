"""Self-Transcendence, first stage: a shallow block's state, behind a head, predicts the clean latent or the velocity.

Sun, Wu, Zhang, Li, Sun, Liu, Zhang 2026, "Unleashing the Semantic Richness Inside Diffusion Transformers for Improved
Training", arXiv 2601.07773. L_align = mean squared difference of f(h_k(x_t, t)) and the target, averaged over patches
and their values, and over samples, of which those outside of the times count as 0. f is a layer from D to a hidden
width, SiLU, one from that to itself, SiLU, one to D, a LayerNorm without weights, and one to a patch's values. Read:
the abstract, and the published code (csslc/Self-Transcendence: loss.py, models/sit_vaeloss_model.py, train_vaeloss.py
and .sh), from which all settings here are; the paper's equations were not read. The abstract says that features are
aligned with the clean latents of the autoencoder; in the code the target is that of the backbone, the velocity
(`target: prediction`). Both are choices here.
Published setting (train_vaeloss.sh): SiT-B/2, λ = 0.5, k the 2nd of 12 blocks, times 0.4 to 0.7, hidden width 2048; 40
epochs. The second stage is `self_transcendence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import SIZE, TAP, setting
from urepa.core.descriptions import Formula, number
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import CONFLICT, Schedule
from urepa.method.losses.no_loss import DIFFUSION
from urepa.method.self_alignment import OwnStates, WithoutTeacher, check_share_of_times

if TYPE_CHECKING:
    from urepa.method.losses.latent_structure_math import LatentStructureLoss

OF_LATENTS = ("latents", TOTAL)  # what the settings of the term alter


class Target(Enum):
    x0 = "x0"
    prediction = "prediction"


IN_WORDS = {"x0": "x0", "prediction": "what the backbone predicts"}


@dataclass
class LatentStructure(WithoutTeacher):
    """L_diff + λ(step)·|f(h_k) − target|² (Self-Transcendence's first stage, arXiv 2601.07773)."""

    _target_: str = "urepa.method.losses.latent_structure.LatentStructure"
    student: str = setting("the tap that is aligned", is_a=TAP, alters=OF_LATENTS)
    target: Target = setting("the clean latent, or what the backbone predicts", alters=OF_LATENTS)
    times: list[float] = setting(
        "from and to: shares of the way from data to noise between which samples are aligned",
        ge=0,
        le=1,
        alters=OF_LATENTS,
    )
    hidden: int = setting("width of the head's hidden layers", ge=1, le=SIZE)

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            *("val/latents", "distance to latents", "↓"),
            rests_on=("objective",),  # which says what the backbone predicts
            trained_by=("loss.lambda_max",),
        ),
    )
    has_head: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (CONFLICT,)

    @property
    def own_states(self) -> OwnStates:
        return OwnStates(taps=(self.student,), x0=True)

    def check(self) -> None:
        check_share_of_times(self.times)

    def build(self, *, schedule: Schedule, max_steps: int) -> LatentStructureLoss:
        from urepa.method.losses.latent_structure_math import LatentStructureLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return LatentStructureLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            f"The loss aligns the tokens h of {self.student}, behind a head f of its own (a perceptron of three layers "
            f"of hidden width {number(self.hidden)}, LayerNorm, linear), with the patches y of "
            f"{IN_WORDS[str(self.target)]} (Self-Transcendence, first stage), where a sample's time is between the "
            f"shares {number(self.times[0])} and {number(self.times[1])} of the way from data to noise; elsewhere its "
            "term is 0. There is no teacher.",
            Formula(r"\mathcal{L} = \mathcal{L}_{\mathrm{diff}} + \lambda(s)\, \mathcal{L}_{\mathrm{latents}}"),
            Formula(DIFFUSION),
            Formula(
                r"\mathcal{L}_{\mathrm{latents}} = \mathbb{E}\, 1_{t}\, \tfrac{1}{d}"
                r" \bigl\lVert f(h^{k}(x_t, t)) - y \bigr\rVert^2"
            ),
            *self.over_the_run(schedule, max_steps),
        ]
