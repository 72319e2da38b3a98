"""metrics.jsonl: one object per logged step, the source of truth."""

from __future__ import annotations

import json
import math
import os
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

from urepa.files import write_whole

# keys whose values are times or rates; all others repeat bit for bit after a resume
TIMINGS = ("time", "images_per_s", "data_wait_share", "gpu/power_w", "gpu/utilization", "gpu/memory_gib")


class MetricsLog:
    """Appends rows and knows how many there are, so that a checkpoint can say how many belong to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = len(read_rows(path))

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row with its time stamp (milliseconds). Values that are not finite become strings."""
        stamped = {key: storable(value) for key, value in row.items()} | {"time": int(time.time() * 1000)}
        with open(self.path, "a") as file:
            file.write(json.dumps(stamped) + "\n")
        self.rows += 1

    def sync(self) -> None:
        """On disk, before a checkpoint counts on it."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def cut(self, rows: int, and_final: bool = False) -> None:
        """Back to the first `rows` rows, and the evaluations' after them if those are to stay: what came after
        the checkpoint will be made again."""
        every = read_rows(self.path)
        kept = every[:rows]
        if and_final:
            kept += takewhile(is_final, every[rows:])
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.rows = len(kept)


def is_final(row: dict[str, Any]) -> bool:
    """Is it an evaluation's, after the last step?"""
    return any(key.startswith("final/") for key in row)


def storable(value: Any) -> Any:
    """A value as a row holds it: one that is not finite as a string."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def number(stored: Any) -> float:
    """A row's value as a number; NaN where the row takes the metric back (null)."""
    return math.nan if stored is None else float(stored)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows; a line that a kill cut short ends the list."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
