"""Reads runs from an MLflow store: a database URI or an http(s) server.

Histories are read in bulk, one metric of many runs per query. One request per run and metric would take an hour where
this takes seconds.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.look_sheets import FOLDER as LOOK
from urepa.reports.comparison.arms import ComparedArms
from urepa.reports.comparison.evaluation_pictures import Pictures, evaluation_pictures
from urepa.reports.comparison.look_strips import Strips, strips_of
from urepa.reports.comparison.metric_columns import is_compared
from urepa.reports.comparison.read_runs import Run, printable_path
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.sample_grids import BUCKETS, FOLDER, Grids, Place, by_place, grids_of, read_file
from urepa.reports.comparison.tables import markdown
from urepa.runs.curves import Curve, curves_of
from urepa.runs.mlflow_run import experiment_id, facts_in
from urepa.runs.mlflow_store import open_existing
from urepa.runs.upgrades import SCHEMA_TAG, upgrade_flat

RUNS_A_QUERY = 100  # the limit of MLflow's server
POINTS_A_QUERY = 25_000  # the limit of its answer
LONGEST_NOTE = 8000  # the limit of a tag, in characters
INFINITY = 1.7976931348623157e308  # the value that MLflow's database stores for infinity

NOTHING = Curve(np.empty(0, np.int64), np.empty(0))

Point = tuple[str, int, float, int]  # run id, step, value, time in ms


def publish(uri: str, results: Results, folder: Path) -> str:
    """Uploads the report's folder as artifacts of a run called "report" and returns a description of its place. The run
    is in an experiment of its own, NAME reports for the baseline's experiment NAME: in the same experiment, every chart
    would list it as a run without values. It has no key of urepa, so comparisons do not read it as a run."""
    client = open_existing(uri)
    study = client.get_experiment(client.get_run(results.study.baseline.first.id).info.experiment_id).name
    reports = f"{study} reports"
    beside = experiment_id(client, reports, print)
    tags = {"urepa.report": "true", "mlflow.note.content": markdown(results)[:LONGEST_NOTE]}
    run_id = client.create_run(beside, run_name="report", tags=tags).info.run_id
    client.log_artifacts(run_id, str(folder))
    client.set_terminated(run_id)
    return f"run report ({run_id}) in the experiment {reports}"


def stored_pictures(client: Any, study: ComparedArms) -> tuple[Grids | None, Strips | None, list[Pictures], str]:
    """The grids of samples, the strips of pictures and the evaluations' pictures among the runs' artifacts. If they
    cannot be read, for example from a server's local disk, none and a sentence that says so."""
    from mlflow.exceptions import MlflowException

    def listed(run: Run, kind: str) -> list[str]:
        buckets = [f"{item.path}/{kind}" for item in client.list_artifacts(run.id, BUCKETS)]
        return [item.path for below in (kind, *buckets) for item in client.list_artifacts(run.id, below)]

    def find(run: Run, kind: str) -> dict[Place, str]:
        return by_place(listed(run, kind))

    def read(run: Run, place: str) -> bytes:
        with TemporaryDirectory() as folder:
            return read_file(run, client.download_artifacts(run.id, place, folder))

    try:
        grids = grids_of(study, lambda run: find(run, FOLDER), read)
        strips = strips_of(study, lambda run: find(run, LOOK), read)
        return grids, strips, evaluation_pictures(study, listed, read), ""
    except (MlflowException, OSError) as error:
        return None, None, [], f"The pictures could not be read from MLflow: {str(error).splitlines()[0]}"


def find_stored(client: Any) -> list[Run]:
    """All runs of urepa that are not deleted, oldest first, without their curves. Other programs' runs are skipped.
    Raises UserError if there are none."""
    experiments = [e.experiment_id for e in _pages(client.search_experiments)]
    found = _pages(client.search_runs, experiments, order_by=["attributes.start_time ASC"]) if experiments else []
    ours = [_run_from_mlflow(run) for run in found if {"urepa.key", "experiment", "ablation"} <= run.data.tags.keys()]
    if not ours:
        raise UserError(f"there are no runs of urepa in {client.tracking_uri}; train some with tracking.uri=URI")
    return ours


def _run_from_mlflow(stored: Any) -> Run:
    facts = facts_in(stored.data.tags)
    config = upgrade_flat(stored.data.params, int(stored.data.tags.get(SCHEMA_TAG, 0)))
    if "step" in facts and not facts.get("ended_early"):
        # parameters in MLflow cannot change: for an extended run this one still has the first length
        config["trainer.max_steps"] = str(facts["step"])
    return Run(
        id=stored.info.run_id,
        name=_folder_name(stored),
        title=stored.info.run_name,
        config=config,
        tags=dict(stored.data.tags),
        status={"FINISHED": "finished", "FAILED": "failed"}.get(stored.info.status, "unfinished"),
        facts=facts,
        curves=dict.fromkeys(stored.data.metrics, NOTHING),
    )


def _folder_name(stored: Any) -> str:
    """The name that the run has when it is read from its folder."""
    folder = Path(stored.data.tags.get("folder", ""))
    return printable_path(f"{folder.parent.name}/{folder.name}") if folder.name else str(stored.info.run_name)


def _pages(search: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*arguments, max_results=1000, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def load_histories(client: Any, runs: list[Run]) -> list[Run]:
    """The runs with the histories of their compared metrics."""
    points: dict[str, dict[str, tuple[array[int], array[float]]]] = {run.id: {} for run in runs}
    started: dict[str, int] = {}
    keys = sorted({key for run in runs for key in run.curves if is_compared(key)})
    wanted = ((key, [run.id for run in runs if key in run.curves]) for key in keys)
    for key, found in _histories(
        client, progress.bar(wanted, desc="metrics", unit="metric", leave=False, total=len(keys))
    ):
        for run_id, step, value, time in found:
            steps, values = points[run_id].setdefault(key, (array("q"), array("d")))
            steps.append(step)
            values.append(_number(value))
            started[run_id] = min(time, started.get(run_id, time))
    return [replace(run, curves=curves_of(points[run.id]), started=started.get(run.id, 0)) for run in runs]


def _histories(client: Any, wanted: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, list[Point]]]:
    """All points of the metrics of runs, for some runs at a time. If a query reaches the limit, its answer is discarded
    and it is repeated with half as many runs, which is kept for the queries after it."""
    runs = RUNS_A_QUERY
    for key, run_ids in wanted:
        left = run_ids
        while left:
            asked = left[:runs]
            points = _query(client, asked, key)
            if len(points) >= POINTS_A_QUERY:
                if len(asked) > 1:
                    runs = len(asked) // 2
                    continue
                history = client.get_metric_history(asked[0], key)
                points = [(asked[0], point.step, point.value, point.timestamp) for point in history]
            yield key, points
            left = left[len(asked) :]
            if 2 * runs * len(points) < POINTS_A_QUERY * len(asked):
                runs = min(2 * runs, RUNS_A_QUERY)


def _query(client: Any, run_ids: list[str], key: str) -> list[Point]:
    """MLflow's bulk query: a method of the database store, or a path of the server."""
    store = client._tracking_client.store
    if hasattr(store, "get_metric_history_bulk"):
        rows = [m.to_dict() for m in store.get_metric_history_bulk(run_ids, key, POINTS_A_QUERY)]
    else:
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        endpoint = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
        params = {"run_id": run_ids, "metric_key": key, "max_results": POINTS_A_QUERY}
        response = http_request(store.get_host_creds(), endpoint, "GET", params=params)
        rows = json.loads(verify_rest_response(response, endpoint).text)["metrics"]
    return [(row["run_id"], row["step"], row["value"], row["timestamp"]) for row in rows]


def _number(value: Any) -> float:
    """A logged number, with MLflow's stand-in for infinity converted back."""
    number = float(value)
    return math.copysign(math.inf, number) if abs(number) >= INFINITY else number
