"""Where jobs are, as far as their files can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launchers.status import lines
from urepa.jobs import Book, Entry, Job
from urepa.metrics import MetricsLog
from urepa.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path, compose: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run at step 20 that is in the book, on a machine without SLURM."""
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
    return folder


def test_a_run_and_how_far_it_is(run: Path, tmp_path: Path) -> None:
    first, second, log = lines(tmp_path)
    assert first.split() == ["local-1", "running", "quickstart"]
    assert second.strip() == "step 20/60  total 0.5"
    assert log.strip() == str(tmp_path / "log")


def test_what_is_damaged_is_said_beside_what_is_not(run: Path, tmp_path: Path) -> None:
    metrics, book = run / "metrics.jsonl", tmp_path / "jobs.jsonl"
    metrics.write_text("#" + metrics.read_text()[1:])
    book.write_text("#\n" + book.read_text())
    said, _, progress, _ = lines(tmp_path)
    assert said == f"damaged: line 1 of {book} is not JSON"
    assert progress.strip().startswith("step 20/60  total 0.5  (damaged: line 1 of metrics.jsonl is not JSON; put")
