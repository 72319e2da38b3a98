"""λ is 0 once the gradient of the alignment no longer agrees with that of the diffusion loss.

After HASTE (Wang et al. 2025, "REPA Works Until It Doesn't", arXiv 2505.16792), which stops alignment once and explains
it by the angle between the two gradients. Read: its abstract and its README, whose trigger is a fixed update (250,000
of SiT-XL with λ = 0.5: schedule.stop_step). That the paper measures the cosine by interval of times is from memory; the
trigger here, an average of the cosine over all times that falls to 0, is this project's reading of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LAST_STEP, part, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.protocols import CONFLICT
from urepa.method.schedules.cutoff_math import Cutoff

if TYPE_CHECKING:
    from urepa.method.schedules.gradient_conflict_math import ConflictSchedule


@dataclass
class GradientConflict(Cutoff):
    """λ follows `shape` until the exponential moving average of the cosine of two gradients at the taps falls to
    `threshold`: that of L_diff and that of the alignment terms, over all samples of an update, all taps and all ranks.
    From then on it is 0, and the teacher is no longer used. A measurement takes effect `delay` updates later."""

    _target_: str = "urepa.method.schedules.gradient_conflict.GradientConflict"
    threshold: float = setting("λ is 0 if the average cosine is at most this", ge=-1, le=1, alters=(TOTAL,))
    ema_decay: float = setting(
        "weight of the previous average at each measurement; the first measurement is the first average",
        ge=0,
        le=1 - 1e-9,
        alters=(TOTAL,),
    )
    every: int = setting("updates from one measurement to the next", ge=1, le=LAST_STEP, alters=(TOTAL,))
    least: int = setting("measurements before which λ is not cut off", ge=1, le=LAST_STEP, alters=(TOTAL,))
    shape: Any = part("the schedule of λ until the cut-off")

    name: ClassVar[str] = "gradient_conflict"
    measures: ClassVar[str] = CONFLICT

    @property
    def is_permanent(self) -> bool:
        return True

    def check_length(self, *, warmup_steps: int, max_steps: int) -> None:
        super().check_length(warmup_steps=warmup_steps, max_steps=max_steps)
        first = (self.least - 1) * self.every + self.delay
        if first >= max_steps:
            raise UserError(
                f"schedule=gradient_conflict has no effect in a run of {max_steps} steps, as it first acts at update "
                f"{first}: give fewer schedule.least or schedule.every"
            )

    def build(self, *, warmup_steps: int, max_steps: int) -> ConflictSchedule:
        from urepa.method.schedules.gradient_conflict_math import ConflictSchedule

        return ConflictSchedule(self, warmup_steps, max_steps)

    def description(self) -> str:
        return self.until(f"{self.shape.description() or 'stays there'}, unless its gradient turns against the loss's")

    def formulas(self, *, peak: float, warmup_steps: int, max_steps: int) -> list[str | Formula]:
        kept, new = number(self.ema_decay), number(round(1 - self.ema_decay, 12))
        return [
            *self.shape.formulas(peak=peak, warmup_steps=warmup_steps, max_steps=max_steps),
            f"A moving average m of the cosine of two gradients at the taps z cuts λ off at update s (d = "
            f"{number(self.delay)} is the number of updates after which a measurement takes effect; it is measured at "
            f"every {number(self.every)}th update, and acts after {number(self.least)} measurements at the earliest):",
            Formula(
                rf"m_{{s-d}} \le {number(self.threshold)}, \qquad m_s = {kept}\, m_{{s'}} + {new}\, "
                r"\cos\bigl( \nabla_z \mathcal{L}_{\mathrm{diff}}(s), \nabla_z \mathcal{L}_{\mathrm{align}}(s) \bigr)"
            ),
            "From the first update at which this holds, λ is 0, and training no longer computes the alignment terms.",
        ]
