"""Copies metrics.jsonl to metrics.csv: a line for each value, as `step,time,metric,value`. Rows have different metrics,
so a column for each would have to be added later. Values that a later evaluation withdrew are `nan`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from urepa.runs.metrics import NOT_METRICS, number
from urepa.runs.trackers.appending_sender import AppendingSender

COLUMNS = ("step", "time", "metric", "value")


class CSVSender(AppendingSender):
    """Writes a run's metrics.csv."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "CSV", folder / "metrics.csv", folder / "csv.json")

    def _beginning(self) -> bytes:
        return _lines([COLUMNS])

    def _encode(self, row: dict[str, Any]) -> bytes:
        return _lines([(row["step"], row["time"], k, number(v)) for k, v in row.items() if k not in NOT_METRICS])


def _lines(rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
