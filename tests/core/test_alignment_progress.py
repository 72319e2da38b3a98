"""When a run's alignment counts as not improving."""

from __future__ import annotations

import math

import pytest

from urepa.core.alignment_progress import early_gain, slow_sentence


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 0.1), (250, 0.3), (500, 0.2), (750, 0.9)], 0.2),  # the largest of those up to step 500
        ([(1, 0.1), (499, 0.3), (600, 0.15), (900, 0.9)], 0.2),
        ([(1, 0.1), (500, 0.05)], -0.05),
        ([(1, 0.1), (499, 0.9)], None),
        ([(500, 0.9), (1000, 0.95)], None),
        ([(1, math.nan), (2, 0.1), (500, 0.2)], 0.1),
        ([], None),
    ],
)
def test_early_gain(points: list[tuple[int, float]], expected: float | None) -> None:
    assert early_gain(points) == (expected if expected is None else pytest.approx(expected))


def test_one_measure_that_rises_is_enough_and_none_says_nothing() -> None:
    arguments = (["block_4", "block_8"], 0.5, "0.0001")
    assert slow_sentence([0.0199, None], *arguments) == (
        "the cosine of projected and teacher tokens rose by 0.020 in 500 updates (less than 0.02): look at the tap "
        "(loss.taps: block_4, block_8), its weight (loss.lambda_max=0.5) and the projector's learning rate "
        "(optimizer.lr.head=0.0001)"
    )
    assert slow_sentence([0.0, 0.021], *arguments) == ""
    assert slow_sentence([None, None], *arguments) == ""
