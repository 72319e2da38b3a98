"""The evaluations of a run inside its training, now and then and on a budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from urepa.core.collectives import LongBarrier
from urepa.evaluation.context import Evaluated


@dataclass
class During:
    """Every `every` steps (None: never) what `evaluate` says of a step, unless all so far and another one that takes as
    long as the last come to more than `share` of the time trained: then that turn is left out, so a study's hours stay
    what they were planned to be. What the first takes nobody knows before: it always runs, and where it is longer
    than its share the next waits until training has caught up. Rank 0 evaluates, the others wait; nothing that training
    draws or updates is touched."""

    evaluate: Callable[[int], Evaluated]
    every: int | None
    share: float
    seconds: float = 0.0  # taken so far, over all processes that trained this run
    last: float = 0.0  # taken by the last one
    wait: LongBarrier = field(default_factory=LongBarrier)

    def is_due(self, step: int, end: int) -> bool:
        """The last step has an evaluation of its own, after training."""
        return self.every is not None and step % self.every == 0 and step < end

    def row(self, step: int, trained: float, is_main: bool) -> dict[str, Any]:
        """`eval/...` on rank 0, where the budget allows it; `trained` is the time trained in seconds."""
        found: dict[str, Any] = {}
        if is_main and self.share > 0 and (self.seconds == 0 or self.seconds + self.last <= self.share * trained):
            begin = time.perf_counter()
            evaluated = self.evaluate(step)
            self.last = time.perf_counter() - begin
            self.seconds += self.last
            found = {f"eval/{key.removeprefix('final/')}": value for key, value in evaluated.metrics.items()}
            for name, why in evaluated.failures.items():
                print(f"step {step}: evaluation.{name}: {why}", flush=True)
        self.wait()
        return found
