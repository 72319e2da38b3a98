"""Real processes with Self-Transcendence's second stage: two gloo processes equal one, and a killed run continues
exactly, all with the end of one run of the first stage."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from workspace import TINY_SIT, Workspace, assert_same_end, without_timings

SIT = tuple(o for o in TINY_SIT if not o.startswith(("head.", "teacher=")))
ALIGNED = ("loss.hidden=16", "loss.times=[0.2,0.9]", "trainer.log_every=1", "tracking=none", "trainer.keep_last=9")


def test_two_processes_equal_one_and_a_killed_run_an_uninterrupted_one(
    make_workspace: Callable[..., Workspace],
) -> None:
    first, alone, two, killed = (make_workspace(SIT) for _ in range(4))
    first.train("loss=latent_structure", "loss.student=block_0", *ALIGNED)
    second = ("loss=self_transcendence", "loss.student=block_1", "loss.teacher=block_2", f"loss.guide={first.run}")
    second += ("data.cfg_dropout=0.2", *ALIGNED)
    alone.train(*second)
    two.train(*second, ranks=2)
    rows = without_timings(alone.run)
    assert "val/guided_distance" in rows[-1]
    for ours, theirs in zip(without_timings(two.run), rows, strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            if key.startswith(("train/", "val/", "grad_norm")):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), (theirs["step"], key)
    killed.train(*second, arranged=("--kill", "after_backward:8"), code=-signal.SIGKILL)
    killed.train(*second)
    assert_same_end(killed.run, alone.run)
