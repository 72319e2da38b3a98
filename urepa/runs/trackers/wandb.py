"""The declaration of tracking with Weights & Biases."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.core.declared_keys import setting
from urepa.core.errors import UserError
from urepa.runs.trackers.extras_sender import require

if TYPE_CHECKING:
    from urepa.runs.trackers.wandb_sender import WandbSender


class Mode(Enum):
    online = "online"
    offline = "offline"


@dataclass
class Wandb:
    """Weights & Biases gets a copy of metrics.jsonl."""

    _target_: str = "urepa.runs.trackers.wandb.Wandb"
    project: str = setting("the W&B project that gets the runs")
    entity: str | None = setting("the W&B user or team; null: the default of your key", None)
    mode: Mode = setting(
        "online: uploaded when the run ends; offline: files below RUN/wandb, which `wandb sync` uploads", Mode.online
    )
    patience: float = setting("seconds to wait for W&B when a run ends", ge=0, le=86_400)

    def prepare(self) -> None: ...

    def check_trusted(self, folder: Path) -> None:
        """Raises UserError if a run's stored config, which may be untrusted, names a project to which this user's key
        would upload, unless the user names that project too."""
        if self._is_online and os.environ.get("WANDB_PROJECT") != self.project:
            raise UserError(
                f"{folder} is tracked in the W&B project {self.project}, by its own config.yaml, and would be uploaded "
                f"with your key: set WANDB_PROJECT={self.project} too if you trust it, or give tracking=none"
            )

    def check_place(self, folder: Path) -> None: ...

    def show_command(self) -> str | None:
        return None if self._is_online else "wandb sync outputs/*/*/wandb/offline-run-*"

    @property
    def _is_online(self) -> bool:
        return str(self.mode) == "online"

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> WandbSender:
        require("wandb")
        from urepa.runs.trackers.wandb_sender import WandbSender

        known: dict[str, Any] = {"folder": folder, "name": name, "params": params, "run_tags": run_tags}
        return WandbSender(self.project, self.entity, str(self.mode), self.patience, **known)
