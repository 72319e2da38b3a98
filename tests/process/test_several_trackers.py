"""A run with four trackers at once, killed in the middle: each has every row once, and MLflow too."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tracked import FLOAT32, assert_same, in_csv, in_tensorboard, in_wandb
from workspace import Workspace, assert_tracked_once

for extra in ("tensorboard", "wandb"):
    pytest.importorskip(extra, reason=f"the extra {extra} is not installed")

TRACKERS = (
    "tracking=several",
    *(f"+tracking@tracking.trackers.{name}={name}" for name in ("mlflow", "csv", "tensorboard", "wandb")),
    *("tracking.trackers.wandb.mode=offline", "tracking.trackers.mlflow.patience=600"),
)


def assert_all_there(run: Path) -> None:
    assert_same(in_csv(run), run)
    assert_same(in_tensorboard(run), run, FLOAT32)
    assert_same(in_wandb(run), run)


def test_a_killed_run_has_every_row_once_in_all_trackers(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.environ, "WANDB_SERVICE", raising=False)  # a process that other tests may have begun
    work.train(*TRACKERS, arranged=("--kill", "after_backward:7"), code=-signal.SIGKILL)
    done = work.train(*TRACKERS)
    assert "metrics.csv; " in done.stdout, "its last lines say where the metrics are"
    assert_all_there(work.run)
    assert_tracked_once(work.db, work.run)
    again = work.train(*TRACKERS)
    assert "is finished" in again.stdout
    assert_all_there(work.run)
