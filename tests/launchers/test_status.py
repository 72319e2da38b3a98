"""The states of jobs, as far as their files can be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from launchers.status import lines
from urepa.cluster.slurm_job import Book, Entry, Job, mark_running
from urepa.core.errors import UserError
from urepa.runs.metrics import MetricsLog
from urepa.runs.run_folder import RunFolder


@pytest.fixture
def run(
    tmp_path: Path, compose: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, BinaryIO]]:
    """A run at step 20 that is in the book, on a machine without SLURM, and the log that its process has open."""
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "quickstart" / "seed0"
    folder.mkdir(parents=True)
    RunFolder(folder).store_config(compose("tracking=none", "trainer.max_steps=60"))
    log = MetricsLog(folder / "metrics.jsonl")
    for step in (10, 20):
        log.append({"step": step, "train/total": step / 40})
    log.append({"step": 20, "final/fd/pixels": 1.0})
    job = Job("quickstart", (("urepa.train", "seed=0"),), str(folder))
    Book(tmp_path).add([Entry(job, "local-1", str(tmp_path / "log"), state="running")])
    with open(tmp_path / "log", "ab+") as log:
        mark_running(log)
        yield folder, log


def test_a_run_is_listed_with_its_progress(run: tuple[Path, BinaryIO], tmp_path: Path) -> None:
    first, second, log = lines(tmp_path)
    assert first.split() == ["local-1", "running", "quickstart"]
    assert second.strip() == "step 20/60  total 0.5"
    assert log.strip() == str(tmp_path / "log")


def test_a_run_whose_launcher_was_killed(run: tuple[Path, BinaryIO], tmp_path: Path) -> None:
    """Its process has ended since, before its last step or at it, and this is not recorded."""
    folder, log = run
    log.write(b"Killed\n")
    log.close()
    first, *details = lines(tmp_path)
    assert first.split() == ["local-1", "failed", "quickstart"]
    assert details[1].strip() == "Killed"
    parts: dict[str, Any] = {
        "experiment": "quickstart",
        "ablation": "baseline",
        "seed": 0,
        "metrics": {},
        "seconds": {},
    }
    (folder / "summary.json").write_text(json.dumps(parts | {"step": 60}))
    assert lines(tmp_path)[0].split() == ["local-1", "done", "quickstart"]


def test_only_the_last_job_of_a_run_is_listed(run: tuple[Path, BinaryIO], tmp_path: Path) -> None:
    """A sweep with a changed conf/ gives another command for the same run."""
    again = Job("again", (("urepa.train", "seed=0", "--config-path", "elsewhere"),), str(run[0]))
    Book(tmp_path).add([Entry(again, "local-2", str(tmp_path / "log"), state="done")])
    assert [line.split()[0] for line in lines(tmp_path) if not line.startswith(" ")] == ["local-2"]


def test_damaged_entries_are_listed_beside_valid_ones(run: tuple[Path, BinaryIO], tmp_path: Path) -> None:
    metrics, book = run[0] / "metrics.jsonl", tmp_path / "jobs.jsonl"
    metrics.write_text("#" + metrics.read_text()[1:])
    book.write_text("#\n" + book.read_text())
    said, _, progress, _ = lines(tmp_path)
    assert said == f"damaged: line 1 of {book} is not JSON"
    assert progress.strip().startswith("step 20/60  total 0.5  (damaged: line 1 of metrics.jsonl is not JSON; put")


def test_local_jobs_need_no_slurm(run: tuple[Path, BinaryIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A squeue that fails affects only jobs of SLURM."""
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    assert lines(tmp_path)[0].split() == ["local-1", "running", "quickstart"]
    Book(tmp_path).add([Entry(Job("other", (("urepa.train",),)), "12", str(tmp_path / "log"))])
    with pytest.raises(UserError, match="squeue does not answer: Unable to contact slurm controller"):
        lines(tmp_path)
    squeue.unlink()
    with pytest.raises(UserError, match="there is no squeue here"):
        lines(tmp_path)
