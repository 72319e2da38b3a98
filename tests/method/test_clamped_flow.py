"""Clamped times of `flow_clamped`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from urepa.core.errors import UserError
from urepa.method.objectives.flow_clamped import FlowClamped
from urepa.method.objectives.flow_math import FlowMath


def declared(**changes: Any) -> FlowClamped:
    known: dict[str, Any] = {"path": "linear", "draw": "lognormal", "lowest": 0.3, "highest": 0.6}
    return FlowClamped(**(known | changes))


def test_times_are_those_of_the_flow_clamped() -> None:
    ours, theirs = declared().build(), FlowMath("linear", "lognormal")
    drawn = [(ours.sample_t(np.random.default_rng(i)), theirs.sample_t(np.random.default_rng(i))) for i in range(200)]
    assert all(t == min(max(free, 0.3), 0.6) for t, free in drawn)
    assert {t for t, _ in drawn} >= {0.3, 0.6}
    free = np.array([t for _, t in drawn])
    logits = np.log(free / (1 - free))
    assert abs(logits.mean()) < 0.25, "the sigmoid of a standard normal number"
    assert abs(logits.std() - 1) < 0.2
    times = ours.sampling_times(4, (1, 2, 2), torch.device("cpu")).tolist()
    assert times == [1, 0.75, 0.5, 0.25, 0], "sampling is not clamped"


def test_a_lowest_time_above_the_highest_is_refused() -> None:
    declared().check()
    with pytest.raises(UserError, match="give a lowest time below the highest"):
        declared(lowest=0.6).check()
