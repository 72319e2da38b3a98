"""Copies metrics.jsonl to Weights & Biases: a thread logs each row into W&B's own offline files in the run's folder. At
the end of the run a child process uploads them (`wandb sync`), which is ended if it takes too long.

W&B's process writes its file some time after a row was logged, so the cursor only advances when a session (a process's
file) was closed. A session that was not closed is removed by the next process, which logs its rows again; the closed
sessions of a run have the same id and different rows, and W&B puts them together in the order of their beginnings.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from urepa.core.files import read_json, write_whole
from urepa.runs.metrics import number
from urepa.runs.mlflow_run import FACTS_TAG
from urepa.runs.trackers.following_sender import START, End, Follower

POLL = 0.1  # seconds
LAST_WORDS = 300  # characters of the upload's output in a message


class WandbSender(Follower):
    """Sends a run's rows to a W&B project. The fields after the star belong to the run; the others are config."""

    def __init__(
        self,
        project: str,
        entity: str | None,
        mode: str,
        patience: float,
        *,
        folder: Path,
        name: str,
        params: dict[str, Any],
        run_tags: dict[str, str],
    ) -> None:
        super().__init__(folder, "W&B", f"W&B ({project})", patience)
        self.project, self.entity, self.uploads = project, entity, mode == "online"
        self.cursor_file = folder / "wandb.json"
        self.name, self.params, self.tags = name, params, run_tags
        self._run: Any = None
        self._next: tuple[list[int], int] = (START.place, 0)  # the last logged row, and the number of logged rows

    @property
    def where(self) -> str:
        return f"{self.label}, run {self._cursor()['run_id']}" if self.uploads else f"{self.folder / 'wandb'}"

    def has_all(self) -> bool:
        """Whether the run is finished and every row is in a closed session and, online, uploaded."""
        cursor = self._cursor()
        is_sent = cursor["session"] is None and not (self.uploads and cursor["closed"])
        return bool(cursor["finished"]) and is_sent and next(self._unsent_rows(cursor), None) is None

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        super().close(status, artifacts, tags)
        self._thread.join(10 * POLL)  # it ends an upload that is not done

    # --- the cursor -------------------------------------------------------------------------------------

    def _cursor(self) -> dict[str, Any]:
        """The stored cursor, a dict: the `run_id` at W&B; the place of the last row in a closed session, `sent`, and
        the number of rows in them, `count`; the folder of the open `session`, if any; those that are `closed` and not
        uploaded; and whether the run was `finished`."""
        known = read_json(self.cursor_file) if self.cursor_file.exists() else {}
        new = {"run_id": uuid4().hex[:16], "sent": START.place, "count": 0, "session": None, "closed": []}
        return new | {"finished": False} | known

    def _save(self, cursor: dict[str, Any]) -> None:
        write_whole(self.cursor_file, json.dumps(cursor))

    # --- sending ----------------------------------------------------------------------------------------

    def _import(self) -> None:
        importlib.import_module("wandb")

    def _reset(self) -> None:
        """What a session took may be lost with it, so all of its rows are logged again."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=1)

    def _send_new_rows(self, final: End | None) -> None:
        cursor = self._cursor()
        has_rows = self._run is not None or next(self._unsent_rows(cursor), None) is not None
        if final is not None and not has_rows and cursor["count"] and not cursor["session"]:
            self._finish(cursor, final[0])  # all rows were logged by an earlier process
            return
        if self._run is None:
            self._run = self._open(cursor)
        place, count = self._next
        for position in self._new_rows(place):
            values = {key: number(value) for key, value in position.line.value.items() if key != "time"}
            self._run.log(values | {"step": position.step}, step=count)
            self._handled, count = position, count + 1
            self._next = (position.place, count)
        if final is not None:
            self._close_session(final)
            self._finish(self._cursor(), final[0])

    def _open(self, cursor: dict[str, Any]) -> Any:
        """Begins a session, in place of one that was not closed."""
        import wandb

        if cursor["session"] is not None:
            shutil.rmtree(cursor["session"], ignore_errors=True)
        self._handled, self._next = START, (cursor["sent"], cursor["count"])
        quiet = wandb.Settings(console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True)
        run = wandb.init(
            mode="offline",
            dir=str(self.folder),
            project=self.project,
            entity=self.entity,
            id=cursor["run_id"],
            name=self.name,
            group=self.tags.get("experiment"),
            config=self.params | {f"tag/{key}": value for key, value in self.tags.items()},
            resume="allow",
            reinit="create_new",  # a sweep's jobs follow each other in one process
            settings=quiet,
        )
        self._save(cursor | {"session": str(Path(run.settings.sync_dir).absolute())})
        run.define_metric("*", step_metric="step")  # W&B's own step counts rows
        return run

    def _close_session(self, final: End) -> None:
        """Closes the session with the figures of a run and what its end added, and moves the cursor behind its rows."""
        status, artifacts, tags = final
        for path in artifacts:
            self._run.save(str(path), base_path=str(self.folder), policy="now")
        self._run.summary.update({key: value for key, value in tags.items() if not key.startswith(FACTS_TAG)})
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
        self._run = None
        cursor, (place, count) = self._cursor(), self._next
        closed = [*cursor["closed"], cursor["session"]]
        self._save(cursor | {"sent": place, "count": count, "session": None, "closed": closed})

    def _finish(self, cursor: dict[str, Any], status: str) -> None:
        """Uploads the closed sessions, if online."""
        if self.uploads and cursor["closed"]:
            self._upload(cursor["closed"])
            cursor = cursor | {"closed": []}
        self._save(cursor | {"finished": status == "FINISHED"})
        self._done.set()

    def _upload(self, sessions: list[str]) -> None:
        """Runs `wandb sync`. Raises OSError if it fails, or if `close` no longer waits for it."""
        command = [sys.executable, "-m", "wandb", "sync", "--yes", *sessions]
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, start_new_session=True, text=True, **pipes)
        while True:
            try:
                said, _ = child.communicate(timeout=POLL)
                break
            except subprocess.TimeoutExpired:
                if self._done.is_set():
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                    raise OSError("the upload took too long") from None
        if child.returncode:
            raise OSError(f"wandb sync failed: {' '.join(said.split())[-LAST_WORDS:]}")
