"""MLflow as a copy of metrics.jsonl: sent by a thread, with a cursor on disk, each row once.

MLflow may be down, slow or killed; training never waits for it. What could not be sent is sent when the
same command runs again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from urepa.files import write_whole
from urepa.json_lines import BEGINNING, Line
from urepa.markup import markdown
from urepa.metrics import NOT_METRICS, is_final, number, row_lines

METRICS_A_BATCH = 900  # MLflow takes 1,000 in one transaction
PARAMS_A_BATCH = 100
LONGEST_TAG = 8000  # characters that MLflow takes
RETRY_SECONDS = 5.0


class Position(NamedTuple):
    """A line of metrics.jsonl and its place in the rows' order: its step, and at one step its own row, then the
    evaluations'. Counted by step, so that another trainer.log_every sends none twice."""

    line: Line
    step: int
    evaluations: int

    @property
    def place(self) -> list[int]:
        return [self.step, self.evaluations]


START = Position(BEGINNING, -1, 0)


class NoShipper:
    """tracking=none: the run's own files are all there is."""

    def __init__(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> None:
        self.where = "nowhere (tracking=none)"

    def start(self) -> None: ...

    def wake(self) -> None: ...

    def has_all(self) -> bool:
        return True

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None: ...


class MLflowShipper:
    """Sends a run's rows to `uri`. Fields after the star are the run's; the others are config."""

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
        self.uri, self.experiment_name, self.patience = uri, experiment_name, patience
        self.metrics_file, self.cursor_file = folder / "metrics.jsonl", folder / "mlflow.json"
        self.folder, self.name, self.params, self.tags = folder, name, params, run_tags | tags | shown(run_tags)
        self.where = f"{experiment_name} at {uri}"
        self._final: tuple[str, list[Path], dict[str, str]] | None = None
        self._wake = threading.Event()
        self._done = threading.Event()
        self._warned = False
        self._sent = START  # up to here everything is: this process need not read it again
        self._client: Any = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begins to send in the background."""
        self._thread.start()

    def wake(self) -> None:
        """There are new rows."""
        self._wake.set()

    def has_all(self) -> bool:
        """Is this a finished run of which nothing is left to send?"""
        cursor = self._cursor()
        return bool(cursor["finished"]) and next(self._unsent(cursor), None) is None

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        """Sends the rest, waiting `patience` seconds at most, and says so if some could not be sent."""
        self._final = (status, artifacts, tags)
        self._wake.set()
        if not self._done.wait(self.patience):
            unsent = sum(1 for _ in self._unsent(self._cursor()))
            warnings.warn(
                f"MLflow ({self.uri}) did not take {unsent} rows in time; they are in {self.metrics_file} "
                "and are sent when the same command runs again",
                stacklevel=2,
            )
            self._done.set()  # a sweep's next run goes on without this thread

    # --- the thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._done.is_set():
            self._wake.wait(RETRY_SECONDS)
            self._wake.clear()
            final = self._final
            try:
                self._send_all()
                if final is not None:
                    self._finish(*final)
                    self._done.set()
            except Exception as error:  # noqa: BLE001  whatever MLflow raises must not stop training
                if not self._warned:
                    warnings.warn(f"MLflow ({self.uri}) is not answering, will try again: {error}", stacklevel=2)
                    self._warned = True
                self._client = None
                if final is not None and self._done.wait(1.0):
                    return
                if final is not None:
                    self._wake.set()

    def _cursor(self) -> dict[str, Any]:
        """Where this store stands: `run_id`, the place of the last row `sent`, the batch that was under way, if
        any, and whether the run was `finished` there."""
        cursors = json.loads(self.cursor_file.read_text()) if self.cursor_file.exists() else {}
        fresh = {"key": uuid.uuid4().hex, "run_id": None, "sent": [-1, 0], "sending": None, "finished": False}
        return fresh | cursors.get(self.uri, {})

    def _unsent(self, cursor: dict[str, Any]) -> Iterator[Position]:
        """The rows after the cursor, one at a time. A damaged line has nothing to send, which is said."""
        for position in positions(self.metrics_file, self._sent):
            if position.line.damage:
                warnings.warn(
                    f"line {position.line.number} of {self.metrics_file} {position.line.damage}: it is not in MLflow "
                    f"({self.uri}) unless it was sent before",
                    stacklevel=2,
                )
            elif position.place > cursor["sent"]:
                yield position

    def _save(self, cursor: dict[str, Any]) -> None:
        cursors = json.loads(self.cursor_file.read_text()) if self.cursor_file.exists() else {}
        write_whole(self.cursor_file, json.dumps(cursors | {self.uri: cursor}, indent=1))

    def _send_all(self) -> None:
        cursor = self._cursor()
        if self._client is None:
            self._client = _client(self.uri)
            self._open_run(cursor)
        if cursor["sending"] is not None:
            self._settle(cursor)
        metrics: list[Any] = []
        upto = self._sent
        for position in self._unsent(cursor):
            if metrics and len(metrics) + len(position.line.value) > METRICS_A_BATCH:
                self._send(cursor, metrics, upto)
                metrics = []
            metrics += _metrics(position.line.value)
            upto = position
        if metrics:
            self._send(cursor, metrics, upto)

    def _send(self, cursor: dict[str, Any], metrics: list[Any], upto: Position) -> None:
        first = metrics[0]
        cursor["sending"] = {"upto": upto.place, "metric": first.key, "at": [first.step, first.timestamp]}
        self._save(cursor)
        self._client.log_batch(cursor["run_id"], metrics=metrics)
        cursor |= {"sent": upto.place, "sending": None}
        self._save(cursor)
        self._sent = upto

    def _settle(self, cursor: dict[str, Any]) -> None:
        """A batch was under way when the process died: it is one transaction, so one metric tells."""
        sending = cursor["sending"]
        history = self._client.get_metric_history(cursor["run_id"], sending["metric"])
        if any([point.step, point.timestamp] == sending["at"] for point in history):
            cursor["sent"] = sending["upto"]
        cursor["sending"] = None
        self._save(cursor)

    def _open_run(self, cursor: dict[str, Any]) -> None:
        """This run's MLflow run: found again by the key that was stored before it was created."""
        from mlflow.entities import Param, RunTag

        client = self._client
        cursor["finished"] = False
        self._save(cursor)
        experiment = client.get_experiment_by_name(self.experiment_name)
        experiment_id = experiment.experiment_id if experiment else self._create_experiment()
        if cursor["run_id"] is None:
            key = cursor["key"]
            found = client.search_runs([experiment_id], f"tags.`urepa.key` = '{key}'")
            run = found[0] if found else client.create_run(experiment_id, tags={"urepa.key": key}, run_name=self.name)
            cursor["run_id"] = run.info.run_id
            self._save(cursor)
        known = client.get_run(cursor["run_id"]).data.params
        params = [Param(k, str(v)[:6000]) for k, v in self.params.items() if k not in known]
        for at in range(0, len(params), PARAMS_A_BATCH):
            client.log_batch(cursor["run_id"], params=params[at : at + PARAMS_A_BATCH])
        client.log_batch(cursor["run_id"], tags=[RunTag(k, str(v)[:LONGEST_TAG]) for k, v in self.tags.items()])
        client.update_run(cursor["run_id"], status="RUNNING")

    def _create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(self.experiment_name))
        except MlflowException:  # another run was faster
            return str(self._client.get_experiment_by_name(self.experiment_name).experiment_id)

    def _finish(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        cursor = self._cursor()
        run_id = cursor["run_id"]
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)
        for path in artifacts:
            below = path.parent.relative_to(self.folder).as_posix()
            self._client.log_artifact(run_id, str(path), None if below == "." else below)
        begun = self._client.get_run(run_id).info.start_time
        self._client.set_terminated(run_id, status, max(int(time.time() * 1000), begun))  # the clock may be set back
        self._save(cursor | {"finished": status == "FINISHED"})


def shown(tags: dict[str, str]) -> dict[str, str]:
    """What MLflow's own page makes something of: a run's description, its source and the code's version."""
    named = {key: tags.get(key, "") for key in ("experiment", "arm", "seed", "folder", "git_commit")}
    about = f"{named['experiment']} · {named['arm']} · seed {named['seed']}"
    return {
        "mlflow.note.content": f"{markdown(about)}\n\n{markdown(named['folder'])}",
        "mlflow.source.name": "urepa.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": named["git_commit"],
    }


def positions(metrics_file: Path, after: Position = START) -> Iterator[Position]:
    """The lines of metrics.jsonl behind a position. A damaged one counts as an evaluation at the step before: if it was
    one, those after it keep their places, and if not, nothing depends on it."""
    step, evaluations = after.step, after.evaluations
    for line in row_lines(metrics_file, after.line):
        if line.damage:
            evaluations += 1
        elif line.value["step"] != step:
            step, evaluations = line.value["step"], int(is_final(line.value))
        else:
            evaluations += is_final(line.value)
        yield Position(line, step, evaluations)


def _metrics(row: dict[str, Any]) -> list[Any]:
    """A row's numbers as MLflow metrics, with the row's own time stamp. What a row takes back is NaN there."""
    from mlflow.entities import Metric

    names = (k for k in row if k not in NOT_METRICS)
    return [Metric(name, number(row[name]), row["time"], row["step"]) for name in names]


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Several processes that create one sqlite file at once break it: they take turns."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _client(uri: str) -> Any:
    """A client whose store exists, that gives up soon instead of retrying for minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    with _one_at_a_time(uri):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def prepare_store(uri: str) -> None:
    """Before many processes start: makes a sqlite store's tables. A server has its own."""
    if uri.startswith("sqlite:///"):
        _client(uri)
