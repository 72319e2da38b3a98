"""Whether the alignment improves at the beginning of a run: the cosine of projected and teacher tokens must rise by at
least GAIN within STEPS updates. Used during training and by `compare`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

STEPS = 500
GAIN = 0.02
KEYS = ("train/cosine", "val/cosine")


def early_gain(points: Iterable[tuple[int, float]]) -> float | None:
    """How far the largest value, up to the first step that is at least STEPS, is above the first value. `points`: step
    and value, in ascending steps; values that are not finite are left out. None if no value is that late, or if only
    one is there."""
    values: list[float] = []
    for step, value in points:
        if isfinite(value):
            values.append(value)
            if step >= STEPS:
                return max(values[1:]) - values[0] if len(values) > 1 else None
    return None


def slow_sentence(gains: Iterable[float | None], taps: Sequence[str], weight: float, rate: str) -> str:
    """The remark on a run whose cosine rose too little by every measure (`early_gain` of each key); "" for others and
    for runs that are too short to tell.

    Args:
        taps: the aligned taps.
        weight: `loss.lambda_max`.
        rate: the learning rate of the heads, as text.
    """
    known = [gain for gain in gains if gain is not None]
    if not known or max(known) >= GAIN:
        return ""
    return (
        f"the cosine of projected and teacher tokens rose by {max(known):.3f} in {STEPS} updates (less than {GAIN:g}): "
        f"look at the tap (loss.taps: {', '.join(taps)}), its weight (loss.lambda_max={weight:g}) and the projector's "
        f"learning rate (optimizer.lr.head={rate})"
    )
