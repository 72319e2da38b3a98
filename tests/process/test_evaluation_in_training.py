"""Evaluations every N steps: weights are the same bit for bit, after a kill and on two ranks, and rows are written
once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from workspace import EVALUATED, Workspace, assert_same_checkpoint, assert_tracked_once, steps, without_timings

OFTEN = (*EVALUATED, "trainer.evaluate_every=4", "trainer.evaluation_share=1000")


def assert_same_beside_evaluations(run: Path, reference: Path, last: int = 12) -> None:
    rows = without_timings(run)
    assert [row["step"] for row in rows if "eval/samples_named_rightly" in row] == [4, 8]
    assert [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows] == without_timings(reference)
    assert steps(run)[-1] == steps(reference)[-1] == last
    assert_same_checkpoint(run, reference, last)


def test_a_kill_inside_an_evaluation_changes_nothing(work: Workspace, evaluated: Workspace) -> None:
    work.train(*OFTEN, arranged=("--kill", "in_evaluation:2"), code=-signal.SIGKILL)
    assert steps(work.run)[-1] == 6
    assert [row["step"] for row in without_timings(work.run)][-1] == 6, "the row of step 8 was not written"
    work.train(*OFTEN)
    assert_same_beside_evaluations(work.run, evaluated.run)
    assert_tracked_once(work.db, work.run)


def test_rank_0_evaluates_while_the_other_waits(make_workspace: Callable[[], Workspace]) -> None:
    plain, often = make_workspace(), make_workspace()
    plain.train(*EVALUATED, "tracking=none", ranks=2)
    often.train(*OFTEN, "tracking=none", ranks=2)
    assert_same_beside_evaluations(often.run, plain.run)
