"""Base classes of the declared schedules: a λ that stays constant or decays, known before the run. No torch.

Below, λ_max is `loss.lambda_max`, W its `warmup_steps`, D the last update of a decay, and f the final share of λ_max.
p(s) = min((s − W)/max(D − W, 1), 1) goes from 0 at the warm-up's end to 1 from D on. D is counted from the run's first
update, as W is.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from typing import Any

from urepa.core.abstract import Abstract
from urepa.core.comparability import TOTAL
from urepa.core.declared_keys import LARGEST, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.protocols import COSINE


@dataclass
class Shape(Abstract):
    """λ stays at its peak after the warm-up, until `stop_step`. A subclass gives `factor` and `description`."""

    stop_step: int | None = setting(
        "from this update on λ is 0 and only validations use the teacher; null: never",
        None,
        ge=1,
        le=LARGEST,
        alters=(TOTAL,),
    )

    def factor(self, step: int, steps: int) -> float:
        """The share of the peak at an update after the warm-up, in [0, 1].

        Args:
            step: updates since the warm-up's end; 0 during the warm-up.
            steps: updates from the warm-up's end to the decay's end, 1 or more.
        """
        return 1.0

    def description(self) -> str:
        return self.until("stays there") if self.stop_step is not None else ""

    def formulas(self, *, peak: float, warmup_steps: int, max_steps: int) -> list[str | Formula]:
        return []

    # --- the same for all -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def check_length(self, *, warmup_steps: int, max_steps: int) -> None:
        if self.stop_step is not None and self.stop_step >= max_steps:
            raise UserError(
                f"schedule.stop_step={self.stop_step} has no effect in a run of {max_steps} steps; give fewer, or null"
            )

    def decay_end(self, max_steps: int) -> int:
        """D: the update from which on the share no longer changes."""
        return max_steps

    def share(self, step: int, *, warmup_steps: int, max_steps: int) -> float:
        if self.is_stopped(step):
            return 0.0
        return self.factor(max(0, step - warmup_steps), max(1, self.decay_end(max_steps) - warmup_steps))

    def is_stopped(self, step: int) -> bool:
        return self.stop_step is not None and step >= self.stop_step

    def teacher_steps(self, *, warmup_steps: int, max_steps: int) -> float:
        return inf if self.stop_step is None else self.stop_step

    def may_stop(self, *, warmup_steps: int, max_steps: int) -> bool:
        return self.teacher_steps(warmup_steps=warmup_steps, max_steps=max_steps) < max_steps

    def build(self, *, warmup_steps: int, max_steps: int) -> KnownSchedule:
        return KnownSchedule(self, warmup_steps, max_steps)

    def until(self, text: str) -> str:
        """The text, followed by the stop if there is one."""
        return (
            text if self.stop_step is None else f"{text} until update {number(self.stop_step)}, from which on it is 0"
        )


@dataclass
class Decay(Shape):
    """λ falls to `final` of its peak and stays there. A subclass gives `factor` and `words`."""

    final: float = setting("share of loss.lambda_max that is left after the decay", ge=0, le=1, alters=(TOTAL,))
    decay_steps: int | None = setting(
        "update at which the decay ends, counted from the run's first; null: trainer.max_steps",
        None,
        ge=1,
        le=LARGEST,
        alters=(TOTAL,),
    )

    @abstractmethod
    def words(self) -> tuple[str, str]:
        """How λ falls: in words, such as "along half a cosine", and as LaTeX, as a function of p from 1 to 0."""

    def check_length(self, *, warmup_steps: int, max_steps: int) -> None:
        super().check_length(warmup_steps=warmup_steps, max_steps=max_steps)
        if self.decay_steps is not None and self.decay_steps <= warmup_steps:
            raise UserError(
                f"schedule.decay_steps={self.decay_steps} is counted from the run's first update, and the warm-up "
                f"alone takes {warmup_steps} (loss.warmup_steps); give more, or null"
            )

    def decay_end(self, max_steps: int) -> int:
        return max_steps if self.decay_steps is None else self.decay_steps

    def teacher_steps(self, *, warmup_steps: int, max_steps: int) -> float:
        stop = super().teacher_steps(warmup_steps=warmup_steps, max_steps=max_steps)
        return stop if self.final else min(stop, max(self.decay_end(max_steps), warmup_steps + 1))

    def description(self) -> str:
        left = f"{number(self.final)} of that" if self.final else "0"
        at = "the last update" if self.decay_steps is None else f"update {number(self.decay_steps)}, where it stays"
        return self.until(f"falls {self.words()[0]} to {left} at {at}")

    def formulas(self, *, peak: float, warmup_steps: int, max_steps: int) -> list[str | Formula]:
        warmup, end = number(warmup_steps), max(self.decay_end(max_steps), warmup_steps + 1)
        down = self.words()[1]
        share = rf"{number(self.final)} + {number(round(1 - self.final, 12))}\, {down}" if self.final else down
        since = f"s - {warmup}" if warmup_steps else "s"
        return [
            "After the warm-up, at update s:",
            Formula(
                rf"\lambda(s) = {number(peak)} \bigl[ {share} \bigr], \qquad "
                rf"p = \min\Bigl( \frac{{{since}}}{{{number(end - warmup_steps)}}}, 1 \Bigr)"
            ),
        ]


class KnownSchedule:
    """A schedule without a state, which does not depend on measurements (`urepa.core.protocols.ScheduleMath`).

    Args:
        declared: a `Shape`, or an object with its methods `share`, `is_stopped` and `teacher_steps`.
        warmup_steps, max_steps: those of the run.
    """

    delay: int | None = None
    measures: str = COSINE  # of a subclass with a delay

    def __init__(self, declared: Shape, warmup_steps: int, max_steps: int) -> None:
        self.declared, self.warmup_steps, self.max_steps = declared, warmup_steps, max_steps
        self.teacher_steps = declared.teacher_steps(warmup_steps=warmup_steps, max_steps=max_steps)

    def value(self, step: int) -> float:
        return self.declared.share(step, warmup_steps=self.warmup_steps, max_steps=self.max_steps)

    def asks_teacher(self, step: int) -> bool:
        return step < self.teacher_steps

    def is_stopped(self, step: int) -> bool:
        return self.declared.is_stopped(step)

    def measures_at(self, step: int) -> bool:
        return False

    def observe(self, step: int, value: Any) -> None:
        """Does nothing: this schedule does not depend on measurements."""

    def logged(self) -> dict[str, float]:
        return {}

    def state(self, step: int) -> dict[str, Any]:
        return {}

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Does nothing: there is no state."""
