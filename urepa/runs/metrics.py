"""metrics.jsonl: one object per logged step, the source of truth."""

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
NOT_FINITE = ("nan", "inf", "-inf")  # as strings in the file, for JSON has no such numbers


class MetricsLog:
    """Appends rows and counts them, so that a checkpoint can say how many belong to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = count_lines(path)
        self._latest = self._last_time()

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row with its time stamp (milliseconds), later than that of the row before it also where the clock was
        set back. Values that are not finite become strings."""
        self._latest = max(int(time.time() * 1000), self._latest + 1)
        stamped = {key: storable(value) for key, value in row.items()} | {"time": self._latest}
        append(self.path, [stamped])
        self.rows += 1

    def _last_time(self) -> int:
        """The time stamp of the last row; 0 where there is none to be read."""
        time_of_last = last_value(self.path).get("time")
        return time_of_last if isinstance(time_of_last, int) else 0

    def sync(self) -> None:
        """On disk, before a checkpoint counts on it."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def cut(self, rows: int, step: int, and_final: bool = False) -> None:
        """Cuts off what the checkpoint of `step` does not keep (`checkpoint_rows`): it will be made again."""
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
    """The beginning of a metrics.jsonl that belongs to a checkpoint: how many rows, and the offset behind them."""

    rows: int
    end: int


def checkpoint_rows(path: Path, rows: int, step: int, and_final: bool = False) -> Beginning:
    """What the checkpoint of `step` keeps: its `rows` rows, and the final evaluations' behind them if those are to
    stay. A file that is not there, or that begins behind the step, has been begun anew: it keeps nothing of it.
    UserError where rows are missing or damaged; behind the kept ones they may be, for they are made again."""
    lines = row_lines(path)
    first = next(lines, None)
    if rows and (first is None or first.value.get("step", 0) > step):
        damaged = next((line for line in lines if line.damage), None)  # or the first row's step is
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
    """The lines behind `after`; one that is no row, or of an earlier step than the one before it, is damaged."""
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
            return f"has {value!r} as {key}, which is no number"
    return ""


class Rows:
    """The rows of a metrics.jsonl, one at a time: a million of them take no memory. What cannot be read is left out of
    a pass and told by `damage` after it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first: Line | None = None  # damaged line
        self._damaged = 0
        self._last: int | None = None  # step

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
        """What is wrong with the file and what to do, as a sentence without its full stop; "" if nothing is. `end`: the
        last step of a run that is finished, and so of its rows if it has any."""
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
    """All rows at once; UserError where some are damaged. Half a last line, of a killed process, is no row."""
    rows = Rows(path)
    every = list(rows)
    if damage := rows.damage():
        raise UserError(f"{path} is damaged: {damage}")
    return every


def last_values(rows: Iterable[dict[str, Any]], end: int) -> dict[str, Any]:
    """The last value of each metric, None where it was taken back. Final evaluations count at the step `end` alone."""
    last: dict[str, Any] = {}
    for row in rows:
        if row["step"] == end or not is_final(row):
            last |= row
    return {key: value for key, value in last.items() if key not in NOT_METRICS}


def is_final(row: dict[str, Any]) -> bool:
    """Is it an evaluation's, after the last step?"""
    return any(key.startswith("final/") for key in row)


def storable(value: Any) -> Any:
    """A value as a row holds it: one that is not finite as a string."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def number(stored: Any) -> float:
    """A row's value as a number; NaN where the row takes the metric back (null)."""
    return math.nan if stored is None else float(stored)
