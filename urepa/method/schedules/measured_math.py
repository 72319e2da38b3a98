"""The state of a schedule that measurements cut off. It consists of Python numbers, which are the same on all ranks."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from urepa.method.schedules.cutoff_math import Cutoff
from urepa.method.schedules.shape_math import KnownSchedule


class Average(Protocol):
    """A moving average of the measurements, and whether it has cut λ off: a frozen dataclass whose fields are JSON."""

    @property
    def ema(self) -> float | None:
        """None: nothing is measured yet."""
        ...

    @property
    def is_closed(self) -> bool: ...

    def after(self, value: float | None, declared: Any) -> Any:
        """The average after one more update. A missing or non-finite value leaves it unchanged."""
        ...


class Measured:
    """A number that is copied from the device asynchronously; `read` waits for the copy."""

    def __init__(self, value: Tensor | float) -> None:
        self._value, self._copied = value, None
        if isinstance(value, Tensor) and value.is_cuda:
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> float:
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._value)


class MeasuredSchedule(KnownSchedule):
    """A shape with a cut-off (`urepa.core.protocols.ScheduleMath`). Whether λ is cut off at update s depends on the
    measurements of the updates up to s - delay. The last of these is read when s is asked for first; by then the device
    has finished computing it."""

    logs_as: str  # the name of the average in the log, `train/NAME`

    def __init__(self, declared: Cutoff, warmup_steps: int, max_steps: int, first: Average) -> None:
        """`first`: the average before the first update, of the class that the schedule decides by."""
        super().__init__(declared, warmup_steps, max_steps)
        self.cutoff, self.delay, self.measures = declared, declared.delay, declared.measures
        self._measured: dict[int, Measured | None] = {}  # by update, of those that have not taken effect yet
        self._next = 0  # the update that is observed next
        # the averages that decide the most recent updates; older ones are dropped, as they are not asked for again
        self._decided: dict[int, Average] = {-1: first}

    def _at(self, step: int) -> Average:
        """The average that decides an update: the current one, or a later one whose measurements exist already."""
        last = max(self._decided)
        while last < step:
            measured = last + 1 - self._delay
            assert measured < self._next, f"update {last + 1} depends on what update {measured} measures"
            self._decided[last + 1] = self._after(self._decided[last], measured)
            last += 1
            self._decided.pop(last - 2 * self._delay, None)
        for old in [update for update in self._measured if update <= last - 2 * self._delay]:
            del self._measured[old]
        return self._decided[step]

    @property
    def _delay(self) -> int:
        return self.cutoff.delay

    def _after(self, average: Average, update: int) -> Average:
        """The average after the measurement of `update`; unchanged if there is none, as before the first update."""
        measured = self._measured.get(update)
        return average.after(None if measured is None else measured.read(), self.cutoff)

    def value(self, step: int) -> float:
        return 0.0 if self._at(step).is_closed else super().value(step)

    def asks_teacher(self, step: int) -> bool:
        return super().asks_teacher(step) and (not self.cutoff.is_permanent or not self._at(step).is_closed)

    def measures_at(self, step: int) -> bool:
        return True

    def observe(self, step: int, value: Any) -> None:
        assert step == self._next, f"update {step} is observed, and {self._next} is the next one"
        self._measured[step] = None if value is None else Measured(value)
        self._next += 1

    def logged(self) -> dict[str, float]:
        """The average over all measurements, also those that have not taken effect yet. Waits for the device."""
        average = self._at(self._next - 1)
        for update in range(self._next - self._delay, self._next):
            average = self._after(average, update)
        return {} if average.ema is None else {self.logs_as: average.ema}

    def state(self, step: int) -> dict[str, Any]:
        """The state after `step` updates: the average that decided the last one, and the measurements since."""
        assert step == self._next
        average = self._at(step - 1)
        pending = {}
        for update in range(max(0, step - self._delay), step):
            measured = self._measured.get(update)
            if measured is not None and math.isfinite(value := measured.read()):
                pending[str(update)] = value
        return vars(average) | {"measured": pending}

    def load(self, step: int, state: dict[str, Any]) -> None:
        kind = type(next(iter(self._decided.values())))
        self._decided = {step - 1: kind(**{name: value for name, value in state.items() if name != "measured"})}
        self._measured = {int(update): Measured(value) for update, value in state["measured"].items()}
        self._next = step
