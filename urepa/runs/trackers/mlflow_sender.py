"""Copies metrics.jsonl to MLflow: a thread sends each row once, with a cursor that is stored on disk.

MLflow may be down, slow or killed; training never waits for it. Rows that could not be sent are sent when the same
command runs again. A missing run, experiment or database is restored or created again, with one message.
"""

from __future__ import annotations

import importlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

from urepa.core.files import read_json, write_whole
from urepa.runs import mlflow_run, mlflow_store
from urepa.runs.trackers.following_sender import START, End, Follower, Position, positions

METRICS_A_BATCH = 900  # MLflow accepts 1,000 per transaction


class MLflowShipper(Follower):
    """Sends a run's rows to the store `uri`. The fields after the star belong to the run; the others are config."""

    def __init__(
        self,
        uri: str,
        experiment_name: str,
        tags: dict[str, str],
        patience: float,
        *,
        folder: Path,
        name: str,
        params: dict[str, Any],
        run_tags: dict[str, str],
    ) -> None:
        super().__init__(folder, "MLflow", f"MLflow ({uri})", patience)
        self.uri, self.experiment_name = uri, experiment_name
        self.cursor_file = folder / "mlflow.json"
        self.name, self.params = name, params
        self.tags = run_tags | tags | mlflow_run.page_tags(run_tags)
        self._client: Any = None
        self._store: tuple[int, int] | None = None  # identity of the store that the client has open

    @property
    def where(self) -> str:
        """The name of the experiment and, once it is known, the address of its page."""
        known = self._cursor()["experiment"]
        page = f" ({mlflow_run.page(self.uri, known)})" if known else ""
        return f"{self.experiment_name} at {self.uri}{page}"

    def has_all(self) -> bool:
        """Whether the run is finished, everything was sent, and the store still has it."""
        cursor = self._cursor()
        return (
            bool(cursor["finished"])
            and next(self._unsent_rows(cursor), None) is None
            and self._original_folder(cursor) is None
            and mlflow_store.has_run(self.uri, cursor["run_id"])
        )

    # --- the thread -------------------------------------------------------------------------------------

    def _import(self) -> None:
        importlib.import_module("mlflow")

    def _reset(self) -> None:
        self._client = None

    def _send_new_rows(self, final: End | None) -> None:
        """Sends, and after a failure opens everything again and sends once more: the database or the run may have been
        removed in the meantime. Opening them again prints a message."""
        if self._client is not None and mlflow_store.identity(self.uri) == self._store:
            try:
                self._send_all(final)
                return
            except Exception:  # noqa: BLE001  a persistent error is raised below
                self._client = None
        self._client, self._store = self._open(), mlflow_store.identity(self.uri)
        self._send_all(final)

    # --- the cursor -------------------------------------------------------------------------------------

    def _cursor(self) -> dict[str, Any]:
        """The stored cursor of this store, a dict: the `experiment` and `run_id` there; the `key` by which the run is
        found; the place of the last row `sent`; the `part` of a longer row after it that was sent (its place and the
        number of values); the `last` value of both; the batch that was being sent, if any (`sending`); whether the run
        was `finished`; and the absolute `folder` and `store` to which all of this refers."""
        cursors = read_json(self.cursor_file) if self.cursor_file.exists() else {}
        return _new_cursor() | cursors.get(self.uri, {})

    def _save(self, cursor: dict[str, Any]) -> None:
        cursors = read_json(self.cursor_file) if self.cursor_file.exists() else {}
        write_whole(self.cursor_file, json.dumps(cursors | {self.uri: cursor}, indent=1))

    def _original_folder(self, cursor: dict[str, Any], noted: str | None = None) -> Path | None:
        """The folder of which this one is a copy, if it still exists and has the same MLflow run; both would write to
        that run. A moved folder is not a copy, nor is one that was copied together with its store. `noted`: the folder
        according to its MLflow run, for cursors of earlier versions, which lack it."""
        before = noted if cursor["folder"] is None else cursor["folder"]
        if before is None or cursor["store"] not in (None, mlflow_store.location(self.uri)):
            return None
        file = Path(before) / self.cursor_file.name
        if not file.is_file() or file.resolve() == self.cursor_file.resolve():
            return None
        return Path(before) if read_json(file).get(self.uri, {}).get("key") == cursor["key"] else None

    # --- the MLflow run ---------------------------------------------------------------------------------

    def _open(self) -> Any:
        """A client, after making sure that the store has this run. Raises UserError if the store cannot be used."""
        client, cursor = mlflow_store.connect(self.uri), self._cursor()
        run = mlflow_run.find(client, cursor["run_id"])
        if lost := self._missing_reason(client, cursor, run):
            self._warn_once(f"{lost}; everything is sent again, into a new one")
            cursor, run = _new_cursor() | ({"key": cursor["key"]} if run is None else {}), None
            self._handled = START
        cursor |= {"folder": str(self.folder.absolute()), "store": mlflow_store.location(self.uri)}
        self._save(cursor)  # stores the key before a run with it is created
        if run is None:
            run = mlflow_run.begin(client, self.experiment_name, self.name, cursor["key"], self._warn_once)
        else:
            mlflow_run.revive(client, run, self._warn_once)
        cursor |= {"run_id": run.info.run_id, "experiment": run.info.experiment_id, "finished": False}
        self._save(cursor)
        mlflow_run.describe(client, run, self.params, self.tags, self._warn_once)
        mlflow_run.log_data(client, run, self.params, self._data)
        client.update_run(cursor["run_id"], status="RUNNING")
        if cursor["sending"] is not None:
            self._resolve_pending(client, cursor)
        return client

    def _missing_reason(self, client: Any, cursor: dict[str, Any], run: Any) -> str:
        """Why the store does not have the run of the cursor, or not for this folder; "" if it has."""
        run_id = cursor["run_id"]
        if run_id is None:
            return ""
        if run is None:
            return f"MLflow ({self.uri}) does not have its run {run_id} any more"
        if run.data.tags.get("urepa.key") != cursor["key"]:  # an untrusted mlflow.json may name any run
            return f"the MLflow run {run_id} is not this folder's"
        original = self._original_folder(cursor, run.data.tags.get("folder"))
        if original is not None:
            return f"this is a copy of {original}, which goes on with the MLflow run {run_id}"
        if cursor["last"] is not None and not _is_there(client, run_id, cursor["last"]):
            if run.info.lifecycle_stage == "active":
                client.delete_run(run_id)
            return f"its MLflow run {run_id} lacks what was sent before (an older copy of the database?) and is deleted"
        return ""

    def _resolve_pending(self, client: Any, cursor: dict[str, Any]) -> None:
        """Finds out whether the batch that was being sent when the process died arrived. A batch is one transaction, so
        one of its metrics is enough to decide."""
        sending = cursor["sending"]
        if _is_there(client, cursor["run_id"], sending):
            cursor |= {"sent": sending["upto"], "part": sending.get("part"), "last": sending}
        cursor["sending"] = None
        self._save(cursor)

    # --- sending ----------------------------------------------------------------------------------------

    def _send_all(self, final: End | None) -> None:
        """Sends every row after the cursor, and the end of the run if `final` is given."""
        cursor = self._cursor()
        waiting: list[Any] = []
        seen = upto = self._handled
        for seen in positions(self.metrics_file, self._handled):
            if self._done.is_set():
                return
            if seen.line.damage:
                self._warn_of_damage(seen.line)
                continue
            if seen.place > cursor["sent"]:
                points = mlflow_run.points(seen.line.value, self._warn_once)
                if waiting and len(waiting) + len(points) > METRICS_A_BATCH:
                    self._send(cursor, waiting, upto)
                    waiting = []
                waiting += self._send_parts(cursor, points, upto, seen.place)
            upto = seen
        if waiting:
            self._send(cursor, waiting, upto)
        elif upto.place > cursor["sent"]:  # rows without values that MLflow accepts
            self._save(cursor | {"sent": upto.place})
        self._handled = seen
        if final is not None:
            self._finish(cursor["run_id"], *final)
            self._done.set()

    def _send_parts(self, cursor: dict[str, Any], points: list[Any], upto: Position, place: list[int]) -> list[Any]:
        """Sends full batches of a row that is longer than a batch; returns the points that remain."""
        part = cursor["part"]
        sent = part[2] if part is not None and part[:2] == place else 0
        while len(points) - sent > METRICS_A_BATCH:
            here = points[sent : sent + METRICS_A_BATCH]
            sent += len(here)
            self._send(cursor, here, upto, [*place, sent])
        return points[sent:]

    def _send(self, cursor: dict[str, Any], metrics: list[Any], upto: Position, part: list[int] | None = None) -> None:
        first = metrics[0]
        mark = {"metric": first.key, "at": [first.step, first.timestamp]}
        there = {"sent": max(upto.place, cursor["sent"]), "part": part}
        cursor["sending"] = mark | {"upto": there["sent"], "part": part}
        self._save(cursor)
        self._client.log_batch(cursor["run_id"], metrics=metrics)
        cursor |= there | {"sending": None, "last": mark}
        self._save(cursor)
        self._handled = upto

    def _finish(self, run_id: str, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        mlflow_run.set_tags(self._client, run_id, tags, self._warn_once)
        for path in artifacts:
            below = path.parent.relative_to(self.folder).as_posix()
            self._client.log_artifact(run_id, str(path), None if below == "." else below)
        begun = self._client.get_run(run_id).info.start_time
        self._client.set_terminated(run_id, status, max(int(time.time() * 1000), begun))  # the clock may be set back
        self._save(self._cursor() | {"finished": status == "FINISHED"})


def _new_cursor() -> dict[str, Any]:
    """The cursor of a store to which nothing was sent yet."""
    unknown = dict.fromkeys(("experiment", "run_id", "part", "last", "sending", "folder", "store"))
    return {"key": uuid.uuid4().hex, "sent": [-1, 0], "finished": False} | unknown


def _is_there(client: Any, run_id: str, mark: dict[str, Any]) -> bool:
    """Whether the run has this metric at this step and time."""
    history = client.get_metric_history(run_id, mark["metric"])
    return any([point.step, point.timestamp] == mark["at"] for point in history)
