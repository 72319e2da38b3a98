"""metrics.jsonl: one JSON object per logged step. It is the source of truth; MLflow has a copy."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from urepa.core.errors import UserError
from urepa.core.json_lines import BEGINNING, Line, append, count_lines, last_value, read_lines, truncate_at

# keys whose values are times or rates; all others repeat bit for bit after a resume
TIMINGS = ("time", "images_per_s", "data_wait_share", "gpu/power_w", "gpu/utilization", "gpu/memory_gib")
NOT_METRICS = ("step", "time")
NOT_FINITE = ("nan", "inf", "-inf")  # stored as strings, because JSON has no such numbers


class MetricsLog:
    """Appends rows and counts them, so that a checkpoint can store how many belong to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = count_lines(path)
        self._latest = self._last_time()

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row with a time stamp in milliseconds, which is later than the previous row's even if the clock was
        set back. Values that are not finite are stored as strings."""
        self._latest = max(int(time.time() * 1000), self._latest + 1)
        stamped = {key: storable(value) for key, value in row.items()} | {"time": self._latest}
        append(self.path, [stamped])
        self.rows += 1

    def _last_time(self) -> int:
        """The time stamp of the last row; 0 if none can be read."""
        time_of_last = last_value(self.path).get("time")
        return time_of_last if isinstance(time_of_last, int) else 0

    def sync(self) -> None:
        """Flushes the file to disk. It must be called before a checkpoint relies on the rows."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def cut(self, rows: int, step: int, and_final: bool = False) -> None:
        """Removes the rows that the checkpoint of `step` does not keep (see `checkpoint_rows`). They are computed
        again."""
        there = checkpoint_rows(self.path, rows, step, and_final)
        if there.rows < rows:
            warnings.warn(
                f"{self.path} has none of the {rows} rows that the checkpoint of step {step} counts: a new one begins "
                f"behind that step, without the curves before",
                stacklevel=2,
            )
        truncate_at(self.path, there.end)
        self.rows, self._latest = there.rows, self._last_time()


class Beginning(NamedTuple):
    """The beginning of a metrics.jsonl that belongs to a checkpoint: the number of rows, and the offset after them."""

    rows: int
    end: int


def checkpoint_rows(path: Path, rows: int, step: int, and_final: bool = False) -> Beginning:
    """The beginning that the checkpoint of `step` keeps: its `rows` rows, followed by those of the final evaluations if
    `and_final`. A file that is missing, or that begins after `step`, was started anew; nothing of it is kept. Raises
    UserError if one of the rows is missing or damaged. Rows after them may be damaged: they are computed again."""
    lines = row_lines(path)
    first = next(lines, None)
    if rows and (first is None or first.value.get("step", 0) > step):
        damaged = next((line for line in lines if line.damage), None)  # or the step of the first row is damaged
        if damaged is not None:
            raise _refusal(path, step, f"line {damaged.number} {damaged.damage}")
        return Beginning(0, 0)
    there = Beginning(0, 0)
    for line in chain([] if first is None else [first], lines):
        if there.rows >= rows and not (and_final and (line.damage or is_final(line.value))):
            break
        if line.damage:
            raise _refusal(path, step, f"line {line.number} {line.damage}")
        if there.rows < rows and line.value["step"] > step:
            break
        there = Beginning(line.number, line.end)
    if there.rows < rows:
        raise _refusal(path, step, f"it has {there.rows} rows up to that step, not {rows}")
    return there


def _refusal(path: Path, step: int, why: str) -> UserError:
    return UserError(
        f"{path} is not what it was at the checkpoint of step {step} ({why}): put the file back from a copy, or move "
        f"it away, and the same command goes on from step {step} with a new one, without the curves before"
    )


def row_lines(path: Path, after: Line = BEGINNING) -> Iterator[Line]:
    """The lines after `after`. A line is damaged if it is not a row, or if its step is before that of the previous."""
    before = -1
    for line in read_lines(path, after):
        damage = line.damage or _damage(line.value, before)
        if not damage:
            before = line.value["step"]
        yield line._replace(value={}, damage=damage) if damage else line


def _damage(row: dict[str, Any], before: int) -> str:
    for key in ("step", "time"):
        if type(row.get(key)) is not int:
            return f"has no integer {key}"
    if row["step"] < before:
        return f"is of step {row['step']}, after one of step {before}"
    for key, value in row.items():
        if not isinstance(value, float | int) and value is not None and value not in NOT_FINITE:
            return f"has {value!r} as {key}, which is not a number"
    return ""


class Rows:
    """Iterates over the rows of a metrics.jsonl, one at a time, so that long files need little memory. Unreadable lines
    are skipped, and `damage` describes them after the iteration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first: Line | None = None  # the first damaged line
        self._damaged = 0
        self._last: int | None = None  # the last step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._first, self._damaged, self._last = None, 0, None
        for line in row_lines(self.path):
            if line.damage:
                self._first = line if self._first is None else self._first
                self._damaged += 1
            else:
                self._last = line.value["step"]
                yield line.value

    def damage(self, end: int | None = None) -> str:
        """What is wrong with the file and what to do, as a sentence without its full stop; "" if nothing is wrong.
        `end`: the last step of a finished run, which must be the step of its last row if it has any."""
        if self._first is not None:
            others = f" (more damaged lines: {self._damaged - 1})" if self._damaged > 1 else ""
            return (
                f"line {self._first.number} of {self.path.name} {self._first.damage}{others}; put the file back from a "
                "copy, or delete what is damaged if the run can do without it"
            )
        if end is not None and self._last not in (None, end):
            return (
                f"{self.path.name} ends at step {self._last} and the run at step {end}; put the file back from a copy"
            )
        return ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows. Raises UserError if any is damaged. An incomplete last line, left by a killed process, is ignored."""
    rows = Rows(path)
    every = list(rows)
    if damage := rows.damage():
        raise UserError(f"{path} is damaged: {damage}")
    return every


def last_values(rows: Iterable[dict[str, Any]], end: int) -> dict[str, Any]:
    """The last value of each metric; None if it was withdrawn. Final evaluations count only at the step `end`."""
    last: dict[str, Any] = {}
    for row in rows:
        if row["step"] == end or not is_final(row):
            last |= row
    return {key: value for key, value in last.items() if key not in NOT_METRICS}


def values_by_step(path: Path, key: str) -> dict[int, float]:
    """The values of a metric by step. Unreadable lines are skipped."""
    return {row["step"]: number(row[key]) for row in Rows(path) if row.get(key) is not None}


def is_final(row: dict[str, Any]) -> bool:
    """Whether the row is that of an evaluation after the last step."""
    return any(key.startswith("final/") for key in row)


def storable(value: Any) -> Any:
    """A value as stored in a row: values that are not finite become strings."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def number(stored: Any) -> float:
    """A row's value as a number; NaN if the row withdraws the metric (null)."""
    return math.nan if stored is None else float(stored)
