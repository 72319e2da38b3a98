"""Sending a metrics.jsonl with a damaged line to MLflow: everything else is sent once, and the damage is reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from urepa.core import json_lines
from urepa.core.errors import UserError
from urepa.runs.metrics import MetricsLog, read_rows
from urepa.runs.trackers.following_sender import positions
from urepa.runs.trackers.mlflow_sender import MLflowShipper

ROWS: list[dict[str, Any]] = [
    {"step": 5, "train/total": 2.0},
    {"step": 10, "train/total": 1.0},
    {"step": 10, "final/fd/pixels": 4.0},
    {"step": 10, "final/fd/pixels": 3.0},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    log = MetricsLog(tmp_path / "seed0" / "metrics.jsonl")
    log.path.parent.mkdir()
    for row in ROWS:
        log.append(row)
    return log.path


def damage(file: Path, line: int) -> None:
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{'#' * (i == line)}{text}\n" for i, text in enumerate(lines, 1)))


def shipper(file: Path) -> MLflowShipper:
    tags = {"folder": "x"}
    uri = f"sqlite:///{file.parents[1]}/mlflow.db"
    return MLflowShipper(uri, "urepa", {}, 120.0, folder=file.parent, name="x", params={"seed": 0}, run_tags=tags)


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_a_damaged_line_does_not_shift_the_others(file: Path, line: int) -> None:
    """Rows sent before the damage are not sent again after it, and unsent ones do not count as sent."""
    places = [position.place for position in positions(file)]
    assert places == [[5, 0], [10, 0], [10, 1], [10, 2]]
    damage(file, line)
    there = [position for position in positions(file) if not position.line.damage]
    assert [position.place for position in there] == [*places[: line - 1], *places[line:]]
    assert [p.place for p in positions(file, there[0]) if not p.line.damage] == [p.place for p in there[1:]]


@pytest.mark.slow
def test_everything_else_is_sent_once(file: Path) -> None:
    """A line that is damaged before it could be sent is named; the run is nevertheless marked as finished, once."""
    damage(file, 3)
    log = MetricsLog(file)
    for end in range(2):
        sending = shipper(file)
        sending.start({})
        if end:
            log.append({"step": 10, "final/fd/pixels": 2.0})
        with pytest.warns(UserWarning, match=r"line 3 of .*metrics.jsonl is not JSON: it is not in MLflow"):
            sending.close("FINISHED", [], {})
        assert sending.has_all()
    from mlflow import MlflowClient

    client = MlflowClient(sending.uri)
    run = json.loads((file.parent / "mlflow.json").read_text())[sending.uri]["run_id"]
    sent = {
        key: [(m.step, m.value) for m in client.get_metric_history(run, key)]
        for key in ("train/total", "final/fd/pixels")
    }
    assert sent == {"train/total": [(5, 2.0), (10, 1.0)], "final/fd/pixels": [(10, 3.0), (10, 2.0)]}
    assert client.get_run(run).info.status == "FINISHED"


@pytest.mark.slow
def test_rows_that_arrive_while_sending(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They arrive once and in order. A clock that is set back does not end a run before its start."""
    monkeypatch.setattr("urepa.runs.trackers.mlflow_sender.time", SimpleNamespace(time=lambda: 0.0))
    sending, log = shipper(file), MetricsLog(file)
    sending.start({})
    for step in range(11, 40):
        log.append({"step": step, "train/total": float(step)})
        sending.wake()
    sending.close("FINISHED", [], {})
    from mlflow import MlflowClient

    run = json.loads((file.parent / "mlflow.json").read_text())[sending.uri]["run_id"]
    client = MlflowClient(sending.uri)
    history = client.get_metric_history(run, "train/total")
    assert [m.step for m in history] == [row["step"] for row in read_rows(file) if "train/total" in row]
    info = client.get_run(run).info
    assert info.end_time == info.start_time


@pytest.mark.slow
def test_each_line_is_read_once(file: Path, empty_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows, a new one costs reading one line, also after a resume, when all are already sent."""
    parsed, parse, log = [], json_lines._parse_line, MetricsLog(file)
    monkeypatch.setattr(json_lines, "_parse_line", lambda raw: parsed.append(raw) or parse(raw))
    shutil.copy(empty_db, file.parents[1] / "mlflow.db")
    for first in (11, 31):
        sending = shipper(file)
        sending._client = sending._open()
        there = len(file.read_text().splitlines())
        parsed.clear()
        for _ in range(3):
            sending._send_all(None)
        assert len(parsed) == there
        for step in range(first, first + 20):
            log.append({"step": step, "train/total": float(step)})
            parsed.clear()
            sending._send_all(None)
            assert len(parsed) == 1


def test_a_damaged_cursor_is_reported_before_the_first_step(file: Path) -> None:
    (file.parent / "mlflow.json").write_text("{")
    with pytest.raises(UserError, match=r"mlflow.json is damaged"):
        shipper(file).start({})
