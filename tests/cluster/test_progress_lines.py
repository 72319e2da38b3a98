"""The lines that a local queue prints while its jobs run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.cluster.progress_lines import ProgressLines, step_text
from urepa.cluster.slurm_job import Job
from urepa.runs.metrics import MetricsLog
from urepa.runs.run_folder import RunFolder


@pytest.fixture
def job(tmp_path: Path, compose: Callable[..., dict[str, Any]]) -> Job:
    """A job for a run of 60 steps that has logged nothing yet."""
    folder = tmp_path / "quickstart" / "seed0"
    folder.mkdir(parents=True)
    RunFolder(folder).store_config(compose("tracking=none", "trainer.max_steps=60"))
    return Job("head=conv", (("urepa.train", "seed=0"),), str(folder))


@pytest.mark.slow
def test_the_progress_of_one_job(job: Job, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "quickstart" / "seed0" / "metrics.jsonl")
    printed = tmp_path / "1.log"
    assert step_text(job, printed) == "no step logged yet"
    printed.write_text("$ python -m urepa.train seed=0\n")
    assert step_text(job, printed) == "no step logged yet"
    printed.write_bytes(b"making the caches\nlatents:   0%|  | 0/9\rlatents:  50%|# | 4/9\r  \n")
    assert step_text(job, printed) == "no step logged yet (latents:  50%|# | 4/9)"
    log.append({"step": 20, "train/total": 0.5})
    assert step_text(job, printed) == "step 20 of 60"
    log.append({"step": 60, "train/total": 0.4})
    assert step_text(job, printed) == "all 60 steps trained, not evaluated yet"
    assert step_text(Job("not claimed", (), str(tmp_path / "no")), tmp_path / "2.log") == "no step logged yet"
    assert step_text(Job("preprocess", (("urepa.preprocess",),)), printed) == "at work"


def test_one_line_on_all_running_jobs(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Job("preprocess", (("urepa.preprocess",),))
    with ProgressLines(every=0.05) as told:
        assert told.line() == ""
        told.begin(job, tmp_path / "1.log")
        told.begin(other, tmp_path / "2.log")
        line = "running head=conv: no step logged yet, 0 min; preprocess: at work, 0 min"
        assert told.line() == line
        said, end = "", time.monotonic() + 60
        while line not in said:
            assert time.monotonic() < end
            said += capsys.readouterr().out
        assert re.match(r"begun   head=conv\n(running.*\n)*begun   preprocess\n", said)
        told.end(job)
        assert told.line() == "running preprocess: at work, 0 min"
        told.end(other)
        assert told.line() == ""
