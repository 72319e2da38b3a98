"""Real processes with a class token: two gloo processes equal one, and a killed run continues exactly."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from workspace import TINY_SIT, Workspace, assert_same_end, without_timings

SIT = tuple(o for o in TINY_SIT if not o.startswith("loss."))
PARTS = ("loss=reg", "loss.warmup_steps=2", "backbone.class_token=1280", "loss.class_weight=0.5")
RUN = (*PARTS, "trainer.log_every=1", "tracking=none", "trainer.keep_last=9")


def test_two_processes_equal_one_and_a_killed_run_an_uninterrupted_one(
    make_workspace: Callable[..., Workspace],
) -> None:
    """The class token's noise is that of its sample's address."""
    alone, two, killed = (make_workspace(SIT) for _ in range(3))
    alone.train(*RUN)
    two.train(*RUN, ranks=2)
    assert any("val/class_token" in row for row in without_timings(alone.run))
    for ours, theirs in zip(without_timings(two.run), without_timings(alone.run), strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            if key.startswith(("train/", "val/", "grad_norm")):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), (theirs["step"], key)
    killed.train(*RUN, arranged=("--kill", "after_backward:8"), code=-signal.SIGKILL)
    killed.train(*RUN)
    assert_same_end(killed.run, alone.run)
