"""λ is 0 once the student's tokens are similar enough to the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import part, setting
from urepa.core.descriptions import Formula, number
from urepa.core.protocols import COSINE
from urepa.method.schedules.cutoff_math import Cutoff

if TYPE_CHECKING:
    from urepa.method.schedules.similarity_cutoff_math import SimilaritySchedule


@dataclass
class SimilarityCutoff(Cutoff):
    """λ follows `shape` until the exponential moving average of the similarity (`train/cosine` of every update, over
    all ranks, taps and teachers) reaches `threshold`; then it is 0. A measurement takes effect `delay` updates later,
    because batches are read ahead and training does not wait for the device."""

    _target_: str = "urepa.method.schedules.similarity_cutoff.SimilarityCutoff"
    threshold: float = setting("λ is 0 if the average similarity is at least this", ge=-1, le=1, alters=(TOTAL,))
    ema_decay: float = setting(
        "weight of the previous average at each update; the first update's similarity is the first average",
        ge=0,
        le=1 - 1e-9,
        alters=(TOTAL,),
    )
    recoverable: bool = setting(
        "true: the teacher is still used, and λ returns if the average falls below the threshold; false: the first "
        "cut-off is permanent, and the teacher is no longer used",
        alters=(TOTAL,),
    )
    shape: Any = part("the schedule of λ until the cut-off")

    name: ClassVar[str] = "similarity_cutoff"
    measures: ClassVar[str] = COSINE

    @property
    def is_permanent(self) -> bool:
        return not self.recoverable

    def build(self, *, warmup_steps: int, max_steps: int) -> SimilaritySchedule:
        from urepa.method.schedules.similarity_cutoff_math import SimilaritySchedule

        return SimilaritySchedule(self, warmup_steps, max_steps)

    def description(self) -> str:
        return self.until(f"{self.shape.description() or 'stays there'}, unless the similarity cuts it off")

    def formulas(self, *, peak: float, warmup_steps: int, max_steps: int) -> list[str | Formula]:
        kept, new = number(self.ema_decay), number(round(1 - self.ema_decay, 12))
        if self.recoverable:
            then = "λ is 0 while this holds and returns when it does not; the teacher is used throughout."
        else:
            then = "From the first update at which this holds, λ is 0, and training no longer uses the teacher."
        return [
            *self.shape.formulas(peak=peak, warmup_steps=warmup_steps, max_steps=max_steps),
            f"A moving average m of the similarity cuts λ off at update s (d = {number(self.delay)} is the number of "
            "updates after which a measurement takes effect):",
            Formula(
                rf"m_{{s-d}} \ge {number(self.threshold)}, \qquad m_s = {kept}\, m_{{s-1}} + {new}\, "
                r"\bigl( 1 - \mathcal{L}_{\mathrm{token}}(s) \bigr), \qquad "
                r"m_0 = 1 - \mathcal{L}_{\mathrm{token}}(0)"
            ),
            then,
        ]
