"""The remark on a run whose alignment did not improve at its beginning, from its own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from urepa.core.alignment_progress import KEYS, STEPS, early_gain, slow_sentence
from urepa.runs.metrics import Rows, number


def can_judge(step: int, loss: Any) -> bool:
    """Whether a run with this loss can be judged at `step`: it aligns taps to a teacher, and it is late enough."""
    return step >= STEPS and bool(loss.taps) and loss.lambda_max != 0


def remark(metrics: Path, step: int, loss: Any, rates: Sequence[float]) -> str:
    """The remark; "" for an alignment that improved, and where an earlier process has judged the run.

    Args:
        metrics: the run's rows of metrics.
        step: the updates so far.
        rates: the present learning rate of the heads; empty without heads that train.
    """
    rows = list(Rows(metrics))
    if any(STEPS <= row["step"] < step for row in rows):
        return ""
    points = ([(row["step"], number(row[key])) for row in rows if key in row] for key in KEYS)
    rate = f"{rates[0]:.3g} at this step" if rates else "none"
    return slow_sentence(map(early_gain, points), list(loss.taps), loss.lambda_max, rate)
