"""A disk that is really full: the run ends with one line, the last checkpoint is intact, and with more space the run
finishes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from disks import fill, small_disk
from workspace import Workspace, assert_same_run, one_line_error, steps

from urepa.runs import checkpoint


def checkpoint_bytes(run: Path) -> int:
    return sum(f.stat().st_size for f in max(run.glob("checkpoints/step_*")).iterdir())


@pytest.mark.parametrize(("checkpoints", "survivor"), [(1.5, 3), (2.99, 4)])
def test_a_disk_that_fills_while_saving(
    work: Workspace, reference: Workspace, checkpoints: float, survivor: int
) -> None:
    outputs = work.folder / "outputs"
    with small_disk(outputs, int(checkpoints * checkpoint_bytes(reference.run)) + 40_000):
        said = one_line_error(work.train("tracking=none", code=1))
        assert "could not be written" in said
        assert "run the same command again" in said
        assert not list(work.run.rglob("*.tmp")), "the broken one takes no space"
        found = checkpoint.newest(work.run / "checkpoints")
        assert found is not None
        assert found.step == survivor
        subprocess.run(["mount", "-o", "remount,size=256m", str(outputs)], check=True)
        done = work.train("tracking=none")
        assert f"at step {survivor}" in done.stdout
        assert_same_run(work.run, reference.run)


def test_a_disk_that_is_full_at_the_start(work: Workspace, reference: Workspace) -> None:
    """Not one byte is free: the first write fails, still with one line."""
    outputs = work.folder / "outputs"
    with small_disk(outputs, 4 * checkpoint_bytes(reference.run)):
        work.train("tracking=none", arranged=("--kill", "after_backward:9"), code=-9)
        before = steps(work.run)
        filler = fill(outputs)
        said = one_line_error(work.train("tracking=none", code=1))
        assert "No space left on device" in said
        assert steps(work.run) == before
        filler.unlink()
        work.train("tracking=none")
        assert_same_run(work.run, reference.run)


def test_a_full_disk_with_two_ranks(work: Workspace, reference: Workspace) -> None:
    """Rank 0 writes; the other must not wait for it for ever."""
    outputs = work.folder / "outputs"
    with small_disk(outputs, int(1.5 * checkpoint_bytes(reference.run))):
        done = work.train("tracking=none", ranks=2, fresh=True, code=1)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
        assert "could not be written" in lines[0]
