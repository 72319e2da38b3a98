"""Entries that are missing or refused in MLflow affect nothing else: they are restored with one sentence, and every row
is there once."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.runs.metrics import MetricsLog, read_rows
from urepa.runs.mlflow_run import KIND, end_tags, facts_in, invalid_name_reason, page
from urepa.runs.mlflow_store import connect
from urepa.runs.trackers.mlflow import MLflow
from urepa.runs.trackers.mlflow_sender import METRICS_A_BATCH, MLflowShipper

pytestmark = pytest.mark.slow

URI = "sqlite:///mlflow.db"
DATA = {"content": {"samples": "5a", "latents": "1a", "tokens": "70"}, "samples": {"train": 8}}


@pytest.fixture
def here(tmp_path: Path, empty_db: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty database and a run of three rows."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_db, tmp_path / "mlflow.db")
    log(tmp_path / "outputs" / "x" / "seed0", *({"step": step, "train/total": float(step)} for step in (1, 2, 3)))
    return tmp_path


RUN = Path("outputs/x/seed0")


def log(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    metrics = MetricsLog(folder / "metrics.jsonl")
    for row in rows:
        metrics.append(row)


def shipper(folder: Path = RUN, **own: Any) -> MLflowShipper:
    params = {"data.name": "digits", "data.root": "/caches", "seed": 0} | own.get("params", {})
    tags = {"folder": str(folder), "seed": "0"}
    name = "baseline, seed 0 · x"
    given = own.get("tags", {})
    return MLflowShipper(URI, "urepa", given, 120.0, folder=folder, name=name, params=params, run_tags=tags)


def send(folder: Path = RUN, **own: Any) -> list[str]:
    """Runs the same command again to its end and returns its output."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sending = shipper(folder, **own)
        sending.start(DATA)
        sending.close("FINISHED", [], {})
        assert sending.has_all()
    return [str(one.message) for one in said if isinstance(one.message, UserWarning)]


def wait_until_sent(sending: MLflowShipper) -> None:
    while json.loads((RUN / "mlflow.json").read_text())[URI]["sent"] != [3, 0]:
        sending.wake()
        time.sleep(0.02)


def run_id(folder: Path = RUN) -> str:
    return str(json.loads((folder / "mlflow.json").read_text())[URI]["run_id"])


def assert_there(folder: Path = RUN, refused: tuple[str, ...] = ()) -> None:
    """Checks that every value of every row is there once, in an active run."""
    client = connect(URI)
    run = client.get_run(run_id(folder))
    assert (run.info.lifecycle_stage, run.info.status) == ("active", "FINISHED")
    rows = read_rows(folder / "metrics.jsonl")
    keys = {key for row in rows for key in row} - {"step", "time", *refused}
    assert run.data.metrics.keys() == keys
    for key in keys:
        sent = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        assert sent == [(row["step"], row[key]) for row in rows if key in row]


def test_a_removed_database(here: Path) -> None:
    assert send() == []
    first = run_id()
    (here / "mlflow.db").unlink()
    assert not shipper().has_all()
    (said,) = send()
    assert f"does not have its run {first} any more; everything is sent again, into a new one" in said
    assert run_id() != first
    assert_there()


def test_a_database_that_is_removed_while_it_is_open(
    here: Path, empty_db: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With another one in its place. This is detected before MLflow writes to the removed file, which would print a
    traceback."""
    sending = shipper()
    sending.start(DATA)
    wait_until_sent(sending)
    shutil.copy(empty_db, here / "other.db")

    def exchange_and_close() -> None:
        (here / "other.db").replace(here / "mlflow.db")  # at once: the sender may look at any moment
        log(RUN, {"step": 4, "train/total": 4.0})
        sending.close("FINISHED", [], {})

    with pytest.warns(UserWarning, match="any more; everything is sent again"):
        exchange_and_close()
    assert "database error" not in capfd.readouterr().err
    assert_there()


def test_an_older_copy_of_the_database(here: Path) -> None:
    send()
    shutil.copy(here / "mlflow.db", here / "older.db")
    log(RUN, {"step": 4, "train/total": 4.0})
    send()
    first = run_id()
    (here / "older.db").replace(here / "mlflow.db")
    log(RUN, {"step": 5, "train/total": 5.0})
    (said,) = send()
    assert "lacks what was sent before" in said
    assert connect(URI).get_run(first).info.lifecycle_stage == "deleted"
    assert_there()


def test_the_database_of_another_working_folder_and_back(here: Path, empty_db: Path) -> None:
    """Its first run there is replaced: two active runs would be compared as two."""
    send()
    first = run_id()
    (here / "mlflow.db").rename(here / "first.db")
    shutil.copy(empty_db, here / "mlflow.db")
    send()
    (here / "first.db").replace(here / "mlflow.db")
    log(RUN, {"step": 4, "train/total": 4.0})
    (said,) = send()
    assert "everything is sent again" in said
    assert connect(URI).get_run(first).info.lifecycle_stage == "deleted"
    assert_there()


def delete_run() -> None:
    connect(URI).delete_run(run_id())


def delete_experiment() -> None:
    client = connect(URI)
    client.delete_experiment(client.get_experiment_by_name("urepa").experiment_id)


@pytest.mark.parametrize(("delete", "what"), [(delete_run, "the MLflow run"), (delete_experiment, "the experiment")])
def test_a_deleted_run_is_restored(here: Path, delete: Callable[[], None], what: str) -> None:
    send()
    first = run_id()
    delete()
    assert not shipper().has_all()
    log(RUN, {"step": 4, "train/total": 4.0})
    (said,) = send()
    assert what in said
    assert "restored" in said
    assert run_id() == first
    assert_there()


@pytest.mark.parametrize("delete", [delete_run, delete_experiment])
def test_a_run_that_is_deleted_while_it_is_open(here: Path, delete: Callable[[], None]) -> None:
    sending = shipper()
    sending.start(DATA)
    wait_until_sent(sending)
    delete()
    log(RUN, {"step": 4, "train/total": 4.0})
    with pytest.warns(UserWarning, match="restored") as said:
        sending.close("FINISHED", [], {})
    assert not [one for one in said if "is not answering" in str(one.message)]
    assert_there()


def test_an_experiment_that_was_deleted_before_a_new_run(here: Path) -> None:
    send()
    delete_experiment()
    other = Path("outputs/y/seed0")
    log(other, {"step": 1, "train/total": 1.0})
    assert "the experiment urepa was deleted in MLflow: it is restored" in send(other)[0]
    assert_there(other)


def test_a_copied_folder_gets_its_own_run(here: Path) -> None:
    send()
    copy = Path("outputs/copy/seed0")
    shutil.copytree(RUN, copy)
    assert not shipper(copy).has_all()
    assert shipper().has_all()
    log(copy, {"step": 4, "train/total": 4.0})
    (said,) = send(copy)
    assert f"this is a copy of {RUN.absolute()}, which goes on with the MLflow run {run_id()}" in said
    assert run_id(copy) != run_id()
    for folder in (RUN, copy):
        assert_there(folder)
    assert send(copy) == send() == []


def test_a_foreign_cursor_does_not_affect_another_run(here: Path) -> None:
    """It contains the id of a run of somebody else; nothing is written to it and nothing deleted."""
    send()
    own, client = run_id(), connect(URI)
    before = (client.get_run(own).to_dictionary(), client.get_metric_history(own, "train/total"))
    strange = Path("outputs/strange/seed0")
    shutil.copytree(RUN, strange)
    cursor = json.loads((strange / "mlflow.json").read_text())
    cursor[URI] |= {"key": "0" * 32, "folder": str(strange.absolute()), "sent": [-1, 0], "last": None}
    (strange / "mlflow.json").write_text(json.dumps(cursor))
    (said,) = send(strange)
    assert f"the MLflow run {own} is not this folder's; everything is sent again, into a new one" in said
    assert run_id(strange) != own
    assert (client.get_run(own).to_dictionary(), client.get_metric_history(own, "train/total")) == before
    assert_there(strange)


def test_a_copied_folder_of_an_earlier_version(here: Path) -> None:
    """Its cursor does not record the folder's path; its MLflow run does."""
    send()
    cursor = json.loads((RUN / "mlflow.json").read_text())
    for key in ("folder", "store", "last", "part", "experiment"):
        del cursor[URI][key]
    (RUN / "mlflow.json").write_text(json.dumps(cursor))
    copy = Path("outputs/copy/seed0")
    shutil.copytree(RUN, copy)
    assert "this is a copy of" in send(copy)[0]
    assert send() == []
    assert run_id(copy) != run_id()
    assert_there(copy)


def test_a_moved_folder_and_one_copied_with_its_store_continue(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()
    first = run_id()
    moved = Path("outputs/moved/seed0")
    moved.parent.mkdir()
    RUN.rename(moved)
    log(moved, {"step": 4, "train/total": 4.0})
    assert send(moved) == []
    there = tmp_path_factory.mktemp("copy")
    shutil.copytree(here, there, dirs_exist_ok=True)
    monkeypatch.chdir(there)
    log(moved, {"step": 5, "train/total": 5.0})
    assert send(moved) == []
    assert run_id(moved) == first
    assert_there(moved)


def test_only_a_name_that_mlflow_refuses_is_left_out(here: Path) -> None:
    """It is reported once; the other values of its row are sent. Only what MLflow itself refuses is left out."""
    from mlflow.exceptions import MlflowException

    bad = ("a~b", "a" * 251, "a//b", "../a")
    rows = [{"step": step, "ok": 1.0, "a b:c/d-e.f_g": float("nan")} | dict.fromkeys(bad, 2.0) for step in (4, 5)]
    log(RUN, *rows, {"step": 6, "ok": 10**400})
    own = dict.fromkeys(bad, "v") | {"fine": "v" * 9000, "half": "\udc80\0"}
    said = send(params=own, tags=own)
    for kind in ("metric", "parameter", "tag"):
        for name in bad:
            assert len([one for one in said if f"takes no {kind} {name[:80]!r}" in one]) == 1
    assert len(said) == 3 * len(bad) + 1, said
    client = connect(URI)
    run = client.get_run(run_id())
    for name in ("ok", "a b:c/d-e.f_g"):
        assert [point.step for point in client.get_metric_history(run_id(), name)] == [4, 5]
    assert run.data.metrics.keys() == {"ok", "a b:c/d-e.f_g", "train/total"}
    assert run.data.params == {"data.name": "digits", "data.root": "/caches", "seed": "0"} | {
        "fine": "v" * 6000,
        "half": "\\udc80\\0",
    }
    assert run.data.tags["fine"] == "v" * 8000
    for name in (*bad, "ok"):
        try:
            client.log_metric(run_id(), name, 1.0)
        except MlflowException:
            assert invalid_name_reason(name)
        else:
            assert not invalid_name_reason(name)


def long_rows() -> list[dict[str, Any]]:
    width = 2 * METRICS_A_BATCH + 200
    return [{"step": step} | {f"m{i}": float(i) for i in range(width)} for step in (4, 5)]


def test_a_row_longer_than_a_batch(here: Path) -> None:
    log(RUN, *long_rows(), {"step": 6, "train/total": 6.0})
    assert send() == []
    assert_there()


@pytest.mark.parametrize("after", [False, True])
def test_killed_between_the_parts_of_a_row(here: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Sending stops before or after each transaction, and another process continues: nothing is sent twice or lost.
    MLflow would merge identical points, so calls are counted here."""
    from mlflow import MlflowClient
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH

    log(RUN, *long_rows())
    send_batch, left, sent = MlflowClient.log_batch, 0, []

    class Killed(Exception): ...

    def log_batch(client: Any, run: str, metrics: Any = (), **others: Any) -> None:
        nonlocal left
        if not metrics:
            return send_batch(client, run, **others)
        assert len(metrics) <= MAX_METRICS_PER_BATCH, "MLflow would make several transactions of it"
        left -= 1
        if left == 0 and not after:
            raise Killed
        send_batch(client, run, metrics=metrics)
        sent.extend((metric.key, metric.step) for metric in metrics)
        if left == 0 and after:
            raise Killed

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    for _ in range(20):
        left = 2 if not after else 1
        dying = shipper()
        dying._client = dying._open()
        try:
            dying._send_all(None)
        except Killed:
            continue
        break
    assert len(sent) == len(set(sent)) == 3 + 2 * (2 * METRICS_A_BATCH + 200)
    send()
    assert_there()


def test_the_contents_of_a_runs_page(here: Path) -> None:
    """The kind of the experiment, also for an existing experiment without one, unless the user has chosen it; and the
    data set, once."""
    client = connect(URI)
    experiment = client.create_experiment("urepa")
    for kind, becomes in ((None, KIND[1]), ("genai_development_inferred", KIND[1]), ("regression", "regression")):
        if kind is not None:
            client.set_experiment_tag(experiment, KIND[0], kind)
        send()
        assert client.get_experiment(experiment).tags[KIND[0]] == becomes
    run = client.get_run(run_id())
    assert run.info.run_name == "baseline, seed 0 · x"
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, json.loads(found.dataset.source)) == ("digits", {"uri": "/caches"})
    assert json.loads(found.dataset.profile) == {"train": 8}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]
    other = Path("outputs/y/seed0")
    log(other, {"step": 1, "train/total": 1.0})
    sending = shipper(other)
    sending.start(DATA | {"content": DATA["content"] | {"tokens": "another teacher's"}})
    sending.close("FINISHED", [], {})
    (its,) = client.get_run(run_id(other)).inputs.dataset_inputs
    assert its.dataset.digest == found.dataset.digest, "the same images"
    assert page(URI, "3") == "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning"
    assert page("https://a:1/b/", "3").startswith("https://a:1/b/#/experiments/3/")
    assert sending.where == f"urepa at {URI} ({page(URI, experiment)})"


def test_a_long_summary_is_read_as_it_was(here: Path) -> None:
    """MLflow truncates a tag at 8,000 characters; a shorter value written later overwrites its beginning."""
    client = connect(URI)
    for stretches in (300, 1):
        summary = {"step": 3, "code": [{"from_step": n, "git_commit": "c" * 40} for n in range(stretches)]}
        sending = shipper()
        sending.start(DATA)
        sending.close("FINISHED", [], end_tags({"skipped": 2.0}, summary))
        tags = client.get_run(run_id()).data.tags
        assert facts_in(tags) == summary
        assert tags["guard.skipped"] == "2"
    assert facts_in({}) == {}


def test_evaluating_where_the_database_was_removed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made again where the run was trained, and refused elsewhere, where it would be another database."""
    send()
    (here / "mlflow.db").unlink()
    MLflow(uri=URI).check_place(RUN)
    folder = RUN.absolute()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    with pytest.raises(UserError, match=r"there is no mlflow.db here, which has this run"):
        MLflow(uri=URI).check_place(folder)
