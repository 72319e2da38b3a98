"""Real processes with a loss without a teacher: two gloo processes equal one, and a killed run continues exactly."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from workspace import TINY_SIT, Workspace, assert_same_end, without_timings

SIT = tuple(o for o in TINY_SIT if not o.startswith(("head.", "teacher=")))
LOSSES = {
    "dispersive": ("loss=dispersive", "loss.tap=block_0", "schedule=gradient_conflict", "schedule.every=2"),
    "self_representation": ("loss=self_representation", "loss.student=block_0", "loss.teacher=block_2"),
    "self_flow": ("loss=self_flow", "loss.student=block_0", "loss.teacher=block_2"),
}
OF_CONFLICT = ("schedule.least=1", "schedule.threshold=-1")
RUN = ("trainer.log_every=1", "tracking=none", "trainer.keep_last=9")
each = pytest.mark.parametrize("name", LOSSES)


def overrides(name: str) -> tuple[str, ...]:
    return (*LOSSES[name], *(OF_CONFLICT if name == "dispersive" else ()), *RUN)


@each
def test_two_processes_equal_one_and_a_killed_run_an_uninterrupted_one(
    make_workspace: Callable[..., Workspace], name: str
) -> None:
    """The pairs of the dispersive loss are those of the global batch, and its measurement is over all ranks. The state
    of SRA and Self-Flow is the trainer's average."""
    alone, two, killed = (make_workspace(SIT) for _ in range(3))
    alone.train(*overrides(name))
    two.train(*overrides(name), ranks=2)
    rows = without_timings(alone.run)
    term = {"dispersive": "dispersive", "self_representation": "self_distance", "self_flow": "token"}[name]
    assert f"val/{term}" in rows[-1]
    for ours, theirs in zip(without_timings(two.run), rows, strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            if key.startswith(("train/", "val/", "grad_norm")):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), (theirs["step"], key)
    if name == "dispersive":
        assert any("train/gradient_cosine_ema" in row for row in rows)
    killed.train(*overrides(name), arranged=("--kill", "after_backward:8"), code=-signal.SIGKILL)
    killed.train(*overrides(name))
    assert_same_end(killed.run, alone.run)
