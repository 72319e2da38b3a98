"""The declaration of tracking with TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.runs.trackers.extras_sender import require

if TYPE_CHECKING:
    from urepa.runs.trackers.tensorboard_sender import TensorBoardSender


@dataclass
class TensorBoard:
    """Event files in the run's folder, below tensorboard/, get a copy of metrics.jsonl."""

    _target_: str = "urepa.runs.trackers.tensorboard.TensorBoard"

    def prepare(self) -> None: ...

    def check_trusted(self, folder: Path) -> None: ...

    def check_place(self, folder: Path) -> None: ...

    def show_command(self) -> str:
        return "tensorboard --logdir outputs"

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> TensorBoardSender:
        require("tensorboard")
        from urepa.runs.trackers.tensorboard_sender import TensorBoardSender

        return TensorBoardSender(folder, name)
