"""The same runs from a real MLflow store, sqlite or behind a server, as from their folders."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import changed, write_run
from PIL import Image

from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.reports.comparison import read_mlflow
from urepa.reports.comparison.arms import group_runs
from urepa.reports.comparison.as_json import as_json
from urepa.reports.comparison.evaluation_pictures import evaluation_pictures
from urepa.reports.comparison.read_runs import Run, find_folders, load_curves
from urepa.reports.comparison.results import summarise
from urepa.reports.comparison.sample_grids import find_in_folder, grids_of, list_in_folder, read_file
from urepa.reports.comparison.tables import markdown
from urepa.runs.mlflow_store import connect, open_existing
from urepa.runs.run_folder import facts_of
from urepa.runs.trackers.mlflow_sender import MLflowShipper

pytestmark = pytest.mark.slow  # a fresh MLflow database takes seconds


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> Path:
    """Runs of two arms and two that must be set apart, in folders and, sent by the shipper, in mlflow.db."""
    place = tmp_path_factory.mktemp("both")
    runs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("cifar10/seed0", {"seed": 0}, {}),
        ("cifar10/seed1", {"seed": 1}, {"last": {"val/x0_error": math.inf, "val/token": math.nan}}),
        ("cifar10+arm/seed0", {"seed": 0, "head.depth": 1, "tracking.tags": {"set": "a"}}, {"ablation": "arm"}),
        ("cifar10+arm/seed1", {"seed": 1, "head.depth": 1}, {"ablation": "arm"}),
        ("cifar10/seed2", {"seed": 2}, {"finished": False}),
        ("cifar10/seed3", {"seed": 3, "trainer.max_steps": 900}, {"summary": {"extended_from": 600}}),
    ]
    for name, changes, options in runs:
        own = changed(config, changes)
        folder = write_run(place / "outputs" / name, own, experiment="cifar10", **options)
        logged = copy.deepcopy(own)
        if "extended_from" in options.get("summary", {}):
            logged["trainer"]["max_steps"] = 600  # MLflow keeps a parameter's first value
        with contextlib.chdir(place):  # MLflow puts artifacts below the folder that one stands in
            ship(folder, logged, options, f"sqlite:///{place}/mlflow.db")
    return place


def ship(folder: Path, config: dict[str, Any], options: dict[str, Any], uri: str) -> None:
    finished = options.get("finished", True)
    tags = {"experiment": "cifar10", "ablation": options.get("ablation", "baseline"), "seed": str(config["seed"])}
    shipper = MLflowShipper(
        uri,
        "urepa",
        config["tracking"]["tags"],
        60.0,
        folder=folder,
        name=f"{folder.parent.name}/{folder.name}",
        params=flatten(config),
        run_tags=tags,
    )
    shipper.start({})
    facts = json.dumps(facts_of(json.loads((folder / "summary.json").read_text()))) if finished else "{}"
    shipper.close("FINISHED" if finished else "KILLED", [], {"urepa.summary": facts})
    assert shipper.has_all() is finished


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[str]:
    """The URI of a real `mlflow server` over that database."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{place}/mlflow.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    no_jobs = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven more processes, 20 s of CPU
    with open(place / "server.txt", "w") as log:
        process = subprocess.Popen(command, cwd=place, env=no_jobs, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, (place / "server.txt").read_text()
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def from_store(uri: str) -> list[Run]:
    client = open_existing(uri)
    return read_mlflow.load_histories(client, read_mlflow.find_stored(client))


def comparison(runs: list[Run]) -> dict[str, Any]:
    return as_json(summarise(group_runs(sorted(runs, key=lambda r: r.name), [], None)))


@pytest.mark.parametrize("limit", [read_mlflow.POINTS_A_QUERY, 30])
def test_both_give_the_same(place: Path, server: str, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The whole comparison and every point of every curve; also if MLflow's answers reach their limit."""
    monkeypatch.setattr(read_mlflow, "POINTS_A_QUERY", limit)
    folders = load_curves(find_folders(str(place / "outputs")))
    for uri in (f"sqlite:///{place}/mlflow.db", server):
        stored = from_store(uri)
        assert json.dumps(comparison(stored)) == json.dumps(comparison(folders))
        by_name = {run.name: run for run in stored}
        for run in folders:
            other = by_name[run.name]
            assert (other.config, other.facts, other.status) == (run.config, run.facts, run.status)
            assert other.curves.keys() == run.curves.keys()
            for key, curve in run.curves.items():
                np.testing.assert_array_equal(other.curves[key].steps, curve.steps, key)
                np.testing.assert_array_equal(other.curves[key].values, curve.values, key)
    assert all(cell["mean"] > 0 for cell in comparison(folders)["clock"]["minutes"].values()), "of times too"
    assert {apart["reason"].split(":")[0] for apart in comparison(folders)["apart"]} == {
        "unfinished",
        "extended from 600 steps",
    }


def test_other_runs_are_ignored_and_failed_ones_named(place: Path) -> None:
    uri = f"sqlite:///{place}/mlflow.db"
    client = connect(uri)
    strange = client.create_run(client.create_experiment("not ours"), run_name="<b>theirs</b>")
    assert strange.info.run_id not in {run.id for run in from_store(uri)}
    key = {"experiment": "x", "ablation": "y", "urepa.key": "z"}
    failed = client.create_run("0", tags=key, run_name="failed")
    client.log_param(failed.info.run_id, "seed", 0)
    client.set_terminated(failed.info.run_id, "FAILED")
    (found,) = [run for run in from_store(uri) if run.id == failed.info.run_id]
    assert (found.status, found.last_step) == ("failed", 0)
    client.delete_run(failed.info.run_id)
    assert failed.info.run_id not in {run.id for run in from_store(uri)}


def test_a_report_is_published(place: Path) -> None:
    """With its figures, and its table as the description, in an experiment of its own: in the runs' experiment, charts
    would have a line for the report without values. A comparison does not count it as a run."""
    uri = f"sqlite:///{place}/mlflow.db"
    before = from_store(uri)
    folder = place / "report"
    (folder / "figures").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    (folder / "figures" / "a.png").write_bytes(b"png")
    results = summarise(group_runs(before, [], None))
    client = connect(uri)
    ours = client.get_experiment_by_name("urepa")
    client.create_experiment("elsewhere")
    said = read_mlflow.publish(uri, results, folder)
    assert [run.id for run in from_store(uri)] == [run.id for run in before]
    assert all(run.data.metrics for run in client.search_runs([ours.experiment_id]))
    reports = client.get_experiment_by_name("urepa reports")
    (found,) = client.search_runs([reports.experiment_id])
    assert said == f"run report ({found.info.run_id}) in the experiment urepa reports"
    assert reports.tags["mlflow.experimentKind"] == ours.tags["mlflow.experimentKind"] == "custom_model_development"
    assert (found.info.run_name, found.info.status) == ("report", "FINISHED")
    assert found.data.tags["mlflow.note.content"] == markdown(results)[:8000]
    root = Path(client.download_artifacts(found.info.run_id, ""))
    assert {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} == {"index.html", "figures/a.png"}


@pytest.mark.parametrize(("below", "step", "bucket"), [("samples", 600, ""), ("buckets/48x80/samples", 900, "48x80")])
def test_grids_of_samples_come_from_the_artifacts(place: Path, server: str, below: str, step: int, bucket: str) -> None:
    """The same as from the folders, from the database's store and through a server."""
    folders = load_curves(find_folders(str(place / "outputs")))
    for run in folders:
        if run.name in ("cifar10/seed0", "cifar10+arm/seed0"):
            samples = Path(run.id) / below
            samples.mkdir(exist_ok=True, parents=True)
            Image.new("RGB", (6, 4), "teal").save(samples / f"step_{step:08d}.png")
            Image.new("RGB", (6, 4), "navy").save(samples / f"image_swap_{step:08d}.png")
            client = connect(f"sqlite:///{place}/mlflow.db")
            (stored,) = [other for other in from_store(client.tracking_uri) if other.name == run.name]
            with contextlib.chdir(place):
                for file in samples.iterdir():
                    client.log_artifact(stored.id, str(file), below)
    expected = grids_of(group_runs(folders, [], None), find_in_folder, read_file)
    assert expected is not None
    assert (len(expected.shown), expected.step, expected.bucket) == (2, step, bucket)
    pictures = evaluation_pictures(group_runs(folders, [], None), list_in_folder, read_file)
    assert [(one.step, len(one.shown)) for one in pictures] == [(step, 2)]
    with contextlib.chdir(place):
        for uri in (f"sqlite:///{place}/mlflow.db", server):
            study = group_runs(sorted(from_store(uri), key=lambda run: run.name), [], None)
            assert read_mlflow.stored_pictures(open_existing(uri), study) == (expected, None, pictures, "")


def test_a_missing_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no MLflow store at .*none.db; give store=URI"):
        open_existing(f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9 does not answer"):
        open_existing("http://127.0.0.1:9")


def test_an_empty_store(tmp_path: Path) -> None:
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="there are no runs of urepa in sqlite"):
        from_store(f"sqlite:///{tmp_path}/mlflow.db")
