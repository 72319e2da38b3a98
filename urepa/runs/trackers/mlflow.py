"""The declaration of tracking with MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.core.declared_keys import setting
from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.runs.mlflow_store import check_credentials, location, prepare_store, sqlite_file

if TYPE_CHECKING:
    from urepa.runs.trackers.mlflow_sender import MLflowShipper


@dataclass
class MLflow:
    """An MLflow store gets a copy of metrics.jsonl."""

    _target_: str = "urepa.runs.trackers.mlflow.MLflow"
    uri: str = setting("the store: sqlite:///FILE or http://HOST:PORT")
    experiment_name: str = setting("the experiment that gets the runs")
    tags: dict[str, str] = setting("further tags of the run", {})
    patience: float = setting("seconds to wait for MLflow when a run ends", ge=0, le=86_400)

    def prepare(self) -> None:
        prepare_store(self.uri)

    def check_trusted(self, folder: Path) -> None:
        check_credentials(folder, self.uri)

    def check_place(self, folder: Path) -> None:
        """Raises UserError if a sqlite file with a relative path is opened from another folder than that of training. A
        file that was removed is created again."""
        file, cursors = sqlite_file(self.uri), folder / "mlflow.json"
        known = (read_json(cursors) if cursors.exists() else {}).get(self.uri)
        if known is not None and file is not None and not file.exists() and known.get("store") != location(self.uri):
            raise UserError(
                f"there is no {file} here, which has this run: evaluate from the folder in which it was trained, or "
                "give tracking=none"
            )

    def show_command(self) -> str:
        return f"mlflow ui --backend-store-uri {self.uri}"

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> MLflowShipper:
        from urepa.runs.trackers.mlflow_sender import MLflowShipper

        known: dict[str, Any] = {"folder": folder, "name": name, "params": params, "run_tags": run_tags}
        return MLflowShipper(self.uri, self.experiment_name, self.tags, self.patience, **known)
