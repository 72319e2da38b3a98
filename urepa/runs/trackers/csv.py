"""The declaration of tracking in a CSV file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from urepa.runs.trackers.csv_sender import CSVSender


@dataclass
class CSV:
    """metrics.csv in the run's folder gets a copy of metrics.jsonl."""

    _target_: str = "urepa.runs.trackers.csv.CSV"

    def prepare(self) -> None: ...

    def check_trusted(self, folder: Path) -> None: ...

    def check_place(self, folder: Path) -> None: ...

    def show_command(self) -> None: ...

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> CSVSender:
        from urepa.runs.trackers.csv_sender import CSVSender

        return CSVSender(folder)
