"""Signals save at the step boundary and end the process with 128 + n; the same command continues, bit for bit."""

from __future__ import annotations

import signal

import pytest
from workspace import Workspace, assert_same_run, assert_tracked_once, query, steps, trained, wait_for


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR2"])
def test_a_signal_saves_at_the_step_boundary(work: Workspace, reference: Workspace, name: str) -> None:
    number = signal.Signals[name]
    arranged = ("--send", f"{name}:after_backward:5")
    done = work.train("tracking=none", arranged=arranged, code=128 + number)
    assert steps(work.run)[-1] == 5
    assert "stopped at step 5; the same command goes on from there" in done.stdout
    assert "Traceback" not in done.stderr
    work.train("tracking=none")
    # the stop at step 5 was kept in place of another; from there on all is the same
    assert_same_run(work.run, reference.run)


def test_sigterm_from_outside(work: Workspace, reference: Workspace) -> None:
    process = work.start()
    wait_for(lambda: trained(work), process, "its first row")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, (work.folder / "stderr.txt").read_text()
    assert "stopped at step" in (work.folder / "stdout.txt").read_text()
    assert query(work.db, "select status from runs") == [("KILLED",)]
    work.train()
    assert_same_run(work.run, reference.run)
    assert_tracked_once(work.db, work.run)
    assert query(work.db, "select status from runs") == [("FINISHED",)]


def test_a_sweep_stops(work: Workspace) -> None:
    arranged = ("--send", "SIGTERM:after_backward:5")
    work.train("tracking=none", "seed=0,1", "-m", arranged=arranged, code=128 + signal.SIGTERM)
    assert [run.name for run in work.runs()] == ["seed0"]
    assert steps(work.run)[-1] == 5


def test_sigusr2_is_passed_on_after_saving(work: Workspace) -> None:
    note = work.folder / "handed_on"
    arranged = ("--send", "SIGUSR2:after_backward:5", "--handler", str(note))
    work.train("tracking=none", arranged=arranged, code=128 + signal.SIGUSR2)
    assert note.read_text() == f"{signal.SIGUSR2.value} step_00000005"


def test_a_signal_that_submitit_handles_by_exiting(work: Workspace) -> None:
    """A handler that ends the process, as submitit's does after it has requeued the job."""
    note = work.folder / "requeued"
    arranged = ("--send", "SIGUSR2:after_backward:5", "--handler", f"exit:{note}")
    work.train("tracking=none", arranged=arranged, code=3)
    assert note.read_text().endswith("step_00000005")
