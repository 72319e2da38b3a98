"""Alignment of a backbone with itself: what such a loss reads, and what the declarations of such losses share. Does not
import torch.

Such a loss has no `taps`, and so neither a teacher nor the head of conf/head. It reads states of the backbone
(`OwnStates`), at the trained weights, at their exponential moving average (EMA), or at those of an earlier run. The
averaged weights are the trainer's own EMA (`urepa.training.ema`): it is in every checkpoint, and validation and samples
use it too. Other weights than the trained ones are evaluated in eval mode and without gradients
(`urepa.method.training_step.AlignedModel.states_at`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from omegaconf import MISSING

from urepa.core.abstract import Abstract
from urepa.core.comparability import ALIGNMENT, TOTAL, TOTAL_BY_STEP
from urepa.core.declared_keys import LARGEST, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import Schedule

OWN = "own"  # the name of a head on the backbone's own states: `heads.TAP/own`
PATCH = "patch"  # beside the widths of states: the number of x0's values in a patch (`OwnStates.x0`)
NO_TEACHER = "this loss, which has neither a teacher nor a head of conf/head"


class OwnStates(NamedTuple):
    """What a loss reads of the backbone itself, besides the taps of its heads."""

    taps: tuple[str, ...] = ()  # states at the trained weights
    averaged: tuple[str, ...] = ()  # states at the averaged weights, at times that `second_times` of the loss gives
    frozen: tuple[str, ...] = ()  # states at the weights of an earlier run (`loss.guide`), with `guidance` of the loss
    x0: bool = False  # whether heads return values of x0's patches
    draws: tuple[str, ...] = ()  # purposes for which each sample gets a uniform number (`Batch.draws`)


NO_OWN_STATES = OwnStates()


def own_states(loss: Any) -> OwnStates:
    """The `own_states` of a loss, declared or built; none if it has no such attribute."""
    found: OwnStates = getattr(loss, "own_states", NO_OWN_STATES)
    return found


def has_alignment(loss: Any) -> bool:
    """Whether a loss, declared or built, has alignment terms."""
    return bool(loss.taps) or own_states(loss) != NO_OWN_STATES


@dataclass
class WithoutTeacher(Abstract):
    """The settings and answers that losses without a teacher share (`urepa.core.protocols.Loss`). A subclass gives
    `own_states`, `build` and `description`."""

    _target_: str = MISSING
    lambda_max: float = setting(
        "λ after its warm-up: the weight of the alignment term", ge=0, le=LARGEST, alters=(TOTAL,)
    )
    warmup_steps: int = setting("updates over which λ rises from 0", ge=0, le=LARGEST, alters=(TOTAL_BY_STEP,))

    alters: ClassVar[tuple[str, ...]] = ALIGNMENT
    metrics: ClassVar[tuple[Metric, ...]] = ()
    taps: ClassVar[Mapping[str, float]] = {}
    diffusion_fraction: ClassVar[float] = 1.0
    has_head: ClassVar[bool] = False  # whether it builds a head of its own, which trains in the group "head"
    measures: ClassVar[tuple[str, ...]] = ()  # what a schedule can measure of it (`Schedule.measures`)

    @property
    @abstractmethod
    def own_states(self) -> OwnStates:
        """The states that its terms compare."""

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def check_teachers(self, names: Collection[str]) -> None:
        """Nothing to check: the loss has no weights of teachers."""

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """Nothing to check: samples are not compared with each other."""

    def check_schedule(self, schedule: Schedule, max_steps: int) -> None:
        schedule.check()
        schedule.check_length(warmup_steps=self.warmup_steps, max_steps=max_steps)
        measured = getattr(schedule, "measures", "")
        if measured and measured not in self.measures:
            raise UserError(
                f"this schedule measures the {measured}, which this loss does not have: choose another, schedule=NAME"
            )

    def idle_keys(self) -> dict[str, str | None]:
        heads = () if self.has_head else ("optimizer.*.head",)
        idle: dict[str, str | None] = dict.fromkeys(("head", "teacher", *heads), NO_TEACHER)
        if self.lambda_max == 0:
            idle |= {"schedule.stop_step": None, "schedule": "loss.lambda_max=0, which it multiplies"}
        return idle

    def over_the_run(self, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        """λ over the run: a sentence, and the schedule's formulas."""
        of_run = {"warmup_steps": self.warmup_steps, "max_steps": max_steps}
        trains = self.lambda_max > 0 and self.warmup_steps < max_steps
        return [self._weight(schedule), *(schedule.formulas(peak=self.lambda_max, **of_run) if trains else [])]

    def _weight(self, schedule: Schedule) -> str:
        if self.lambda_max == 0:
            return "λ = 0 throughout: the control, which computes and logs the term and does not train on it."
        shape, lam = schedule.description(), number(self.lambda_max)
        if self.warmup_steps == 0:
            return f"λ = {lam} {f'at first and {shape}' if shape else 'from the first update on'}."
        rises = f"λ rises linearly from 0 to {lam} over the first {number(self.warmup_steps)} update(s)"
        return f"{rises} and {shape or 'stays there'}."

    def model_card(self) -> str:
        return f"λ = {self.lambda_max:g}"


def check_two_states(student: str, teacher: str) -> None:
    """Raises UserError if a loss compares a state with itself."""
    if student == teacher:
        raise UserError(f"loss.student and loss.teacher are both {student}: give two taps, the deeper as teacher")


def check_share_of_times(times: Sequence[float]) -> None:
    """Raises UserError if `loss.times` is not two numbers in ascending order."""
    if len(times) != 2 or times[0] >= times[1]:
        raise UserError(f"loss.times={list(times)}: give two numbers, the smaller one first, as [0.4,0.7]")
