"""The base class of declared schedules that follow another one until measurements cut λ off. No torch."""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import Any, ClassVar

from urepa.core.descriptions import Formula
from urepa.core.errors import UserError
from urepa.core.protocols import Schedule
from urepa.method.schedules.shape_math import KnownSchedule, Shape


class Cutoff(Shape):
    """λ follows `shape`, another schedule, until it is cut off. A measurement takes effect `delay` updates later,
    because batches are read ahead and training does not wait for the device. A subclass is a dataclass with `shape`."""

    shape: Any
    name: ClassVar[str]  # of the schedule in conf/
    measures: ClassVar[str]  # one of `urepa.core.protocols.MEASURED`

    # more than the batches that are read ahead, and than the updates by which the device may lag
    delay: ClassVar[int] = 8

    @property
    @abstractmethod
    def is_permanent(self) -> bool:
        """Whether the first cut-off is permanent, so that the teacher is no longer used."""

    @abstractmethod
    def build(self, *, warmup_steps: int, max_steps: int) -> KnownSchedule: ...

    @abstractmethod
    def description(self) -> str: ...

    @abstractmethod
    def formulas(self, *, peak: float, warmup_steps: int, max_steps: int) -> list[str | Formula]: ...

    def check(self) -> None:
        if isinstance(self.shape, Cutoff):
            raise UserError("schedule.shape: a cut-off inside a cut-off has no effect; choose another shape")
        self.shape.check()
        if getattr(self.shape, "stop_step", None) is not None:
            raise UserError("schedule.shape.stop_step: give schedule.stop_step instead")

    def check_length(self, *, warmup_steps: int, max_steps: int) -> None:
        super().check_length(warmup_steps=warmup_steps, max_steps=max_steps)
        self.shape.check_length(warmup_steps=warmup_steps, max_steps=max_steps)
        if self.delay >= max_steps:
            raise UserError(
                f"schedule={self.name} has no effect in a run of {max_steps} steps: a measurement takes effect "
                f"{self.delay} updates later; choose another schedule"
            )

    def share(self, step: int, *, warmup_steps: int, max_steps: int) -> float:
        if self.is_stopped(step):
            return 0.0
        shape: Schedule = self.shape
        return shape.share(step, warmup_steps=warmup_steps, max_steps=max_steps)

    def teacher_steps(self, *, warmup_steps: int, max_steps: int) -> float:
        of_shape: float = self.shape.teacher_steps(warmup_steps=warmup_steps, max_steps=max_steps)
        return min(of_shape, inf if self.stop_step is None else self.stop_step)

    def may_stop(self, *, warmup_steps: int, max_steps: int) -> bool:
        return self.is_permanent or super().may_stop(warmup_steps=warmup_steps, max_steps=max_steps)
