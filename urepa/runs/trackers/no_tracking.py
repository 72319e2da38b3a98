"""The declaration of a run without tracking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class NoShipper:
    """A sender that sends nothing."""

    where = "nowhere (tracking=none)"

    def start(self, data: dict[str, Any]) -> None: ...

    def wake(self) -> None: ...

    def has_all(self) -> bool:
        return True

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None: ...


@dataclass
class NoTracking:
    """Metrics are only in the run's own files."""

    _target_: str = "urepa.runs.trackers.no_tracking.NoTracking"

    def prepare(self) -> None: ...

    def check_trusted(self, folder: Path) -> None: ...

    def check_place(self, folder: Path) -> None: ...

    def show_command(self) -> None: ...

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> NoShipper:
        return NoShipper()
