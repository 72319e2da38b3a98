"""The dispersive loss: the states of different samples repel each other, without a teacher and without positive pairs.

Wang and He 2025, "Diffuse and Disperse", arXiv 2506.09027. The InfoNCE variant with squared l2 distances:
L_align = log mean_{i,j} exp(−‖z_i − z_j‖² / (D·τ)) over all pairs of the batch, those of a sample with itself included,
where z_i are the D = N·width values of a sample's state. Read: the abstract, and the README of the published PyTorch
code (a copy of raywang4/DispLoss) with the loss, its settings and its results; the paper's text was not read.
Published setting (JAX): λ = 0.5, τ = 0.5, the state at a quarter of the depth, pairs within each device's 16 samples;
here pairs are those of the global batch, so that the loss does not depend on the number of devices. Reported: SiT-B/2
after 80 epochs FID 32.35 (baseline 36.49).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LARGEST, TAP, TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import CONFLICT, Schedule
from urepa.method.losses.no_loss import DIFFUSION
from urepa.method.self_alignment import OwnStates, WithoutTeacher

if TYPE_CHECKING:
    from urepa.method.losses.dispersive_math import DispersiveLoss

OWN_TERMS = ("dispersive", TOTAL)  # what the settings of the loss alter


@dataclass
class Dispersive(WithoutTeacher):
    """L_diff + λ(step)·log mean exp(−D/τ) over the pairs of the global batch (arXiv 2506.09027)."""

    _target_: str = "urepa.method.losses.dispersive.Dispersive"
    tap: str = setting("the tap whose states repel each other", is_a=TAP, alters=OWN_TERMS)
    temperature: float = setting("τ, by which squared distances are divided", ge=TINY, le=LARGEST, alters=OWN_TERMS)

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("val/dispersive", "dispersive loss", "↓", trained_by=("loss.lambda_max",)),
    )
    measures: ClassVar[tuple[str, ...]] = (CONFLICT,)

    @property
    def own_states(self) -> OwnStates:
        return OwnStates(taps=(self.tap,))

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """All samples of the global batch must be in memory at once, and be at least 2."""
        if smallest_group < 2:
            raise UserError(
                f"the dispersive loss compares samples with each other, but a batch has {smallest_group}; give "
                "trainer.batch_size and trainer.validation_group of 2 or more"
            )
        if accumulation > 1:
            raise UserError(
                "the dispersive loss compares all samples of a batch, which trainer.accumulation="
                f"{accumulation} splits into several parts; give trainer.accumulation=1"
            )

    def build(self, *, schedule: Schedule, max_steps: int) -> DispersiveLoss:
        from urepa.method.losses.dispersive_math import DispersiveLoss

        self.check_schedule(schedule, max_steps)
        return DispersiveLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        return [
            f"The loss disperses the states z of {self.tap} over the B samples of the global batch; D is the number of "
            "values of a sample's state. There is neither a teacher nor a head.",
            Formula(r"\mathcal{L} = \mathcal{L}_{\mathrm{diff}} + \lambda(s)\, \mathcal{L}_{\mathrm{disp}}"),
            Formula(DIFFUSION),
            Formula(
                r"\mathcal{L}_{\mathrm{disp}} = \log \frac{1}{B^2} \sum_{i, j} \exp\Bigl("
                rf" - \frac{{\lVert z_i - z_j \rVert_2^2}}{{D \cdot {number(self.temperature)}}} \Bigr)"
            ),
            *self.over_the_run(schedule, max_steps),
        ]
