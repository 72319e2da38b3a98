"""Evaluations of a run during its training, at intervals and within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from urepa.core.collectives import LongBarrier
from urepa.evaluation.context import Evaluated


@dataclass
class During:
    """Runs `evaluate` every `every` steps (None: never) within a time budget. A turn is skipped if the time of all
    evaluations so far plus that of the last one would exceed the share `share` of the training time, so that a study
    takes the planned hours. The first one always runs, because its duration is unknown; if it takes longer than its
    share, the next ones are skipped until there has been enough training. Rank 0 evaluates and the other ranks wait.
    The evaluations do not affect the random draws and weights of training. Pictures (`urepa.evaluation.looking`) have
    turns and a budget of their own, also at the last step (`at_end`), and name themselves in messages."""

    evaluate: Callable[[int], Evaluated]
    every: int | None
    share: float
    seconds: float = 0.0  # taken by all evaluations, over all processes that trained this run
    last: float = 0.0  # taken by the last evaluation
    wait: LongBarrier = field(default_factory=LongBarrier)
    at_end: bool = False
    prefix: str = "evaluation."  # of the names in messages

    def is_due(self, step: int, end: int) -> bool:
        """Whether a turn falls on this step. The last step is evaluated after training instead."""
        return self.every is not None and step % self.every == 0 and (step < end or self.at_end)

    def row(self, step: int, trained: float, is_main: bool) -> dict[str, Any]:
        """Metrics `eval/...` on rank 0 if the budget allows; `trained` is the training time so far in seconds."""
        found: dict[str, Any] = {}
        if is_main and self.share > 0 and (self.seconds == 0 or self.seconds + self.last <= self.share * trained):
            begin = time.perf_counter()
            evaluated = self.evaluate(step)
            self.last = time.perf_counter() - begin
            self.seconds += self.last
            found = {f"eval/{key.removeprefix('final/')}": value for key, value in evaluated.metrics.items()}
            for name, why in evaluated.failures.items():
                print(f"step {step}: {self.prefix}{name}: {why}", flush=True)
        self.wait()
        return found
