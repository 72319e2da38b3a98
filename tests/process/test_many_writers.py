"""Eight runs at once, 500 metrics each, into one MLflow store: every metric is there once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from forks import Forked
from test_mlflow_down import free_port, server
from workspace import Workspace, assert_tracked_once, environment, query, start, wait_for

pytestmark = pytest.mark.long(waits=True)

WRITERS = 8
SCRIPT = str(Path(__file__).with_name("write_metrics.py"))


def begin(work: Workspace, uri: str, *go: str) -> list[Forked]:
    writers = []
    for i in range(WRITERS):
        out, err = (work.folder / f"{name}{i}.txt" for name in ("out", "err"))
        writers.append(start([SCRIPT, str(work.folder / f"seed{i}"), uri, *go], work.folder, out, err))
    return writers


def assert_all_there(work: Workspace, writers: list[Forked]) -> None:
    codes = [writer.wait() for writer in writers]
    assert codes == [0] * WRITERS, [(work.folder / f"err{i}.txt").read_text() for i in range(WRITERS)]
    for i in range(WRITERS):
        assert_tracked_once(work.db, work.folder / f"seed{i}")
    counted = query(work.db, "select count(*), count(distinct run_uuid || key || step) from metrics group by run_uuid")
    assert counted == [(500, 500)] * WRITERS
    assert query(work.db, "select count(*), status from runs group by status") == [(WRITERS, "FINISHED")]


def test_eight_runs_write_to_one_new_sqlite_file(work: Workspace) -> None:
    """Its tables are made before, as launchers do."""
    work.db.unlink()
    uri = f"sqlite:///{work.db}"
    prepare = f"from urepa.runs.mlflow_store import prepare_store; prepare_store({uri!r})"
    subprocess.run([sys.executable, "-c", prepare], env=environment(), check=True, capture_output=True)
    assert_all_there(work, begin(work, uri))


def test_a_server_that_is_down_while_rows_are_written(work: Workspace) -> None:
    """Each run has sent something before, and has found the server down."""
    port, go = free_port(), work.folder / "go"
    with server(work, port):
        writers = begin(work, f"http://127.0.0.1:{port}", str(go))
        wait_for(lambda: len(query(work.db, "select distinct run_uuid from metrics")) == WRITERS, None, "all to write")
    before = query(work.db, "select count(*) from metrics")[0][0]
    assert before < WRITERS * 500
    go.touch()
    said = [work.folder / f"err{i}.txt" for i in range(WRITERS)]
    wait_for(lambda: all("is not answering" in file.read_text() for file in said), None, "all to find it down")
    with server(work, port):
        assert_all_there(work, writers)


def test_preparing_contacts_no_server() -> None:
    """The server may not be up yet."""
    from urepa.runs.mlflow_store import prepare_store

    prepare_store("http://127.0.0.1:9")
