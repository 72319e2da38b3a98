"""Eight runs at once, 500 metrics each, into one MLflow store: every one is there, once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from test_mlflow_down import free_port, server
from workspace import Workspace, assert_tracked_once, environment, query, wait_for

WRITERS = 8
SCRIPT = str(Path(__file__).with_name("write_metrics.py"))


def start(work: Workspace, uri: str, pause: float) -> list[subprocess.Popen[str]]:
    commands = [[sys.executable, SCRIPT, str(work.folder / f"seed{i}"), uri, str(pause)] for i in range(WRITERS)]
    return [
        subprocess.Popen(c, cwd=work.folder, env=environment(), stderr=subprocess.PIPE, text=True) for c in commands
    ]


def assert_all_there(work: Workspace, writers: list[subprocess.Popen[str]]) -> None:
    said = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, said
    for i in range(WRITERS):
        assert_tracked_once(work.db, work.folder / f"seed{i}")
    counted = query(work.db, "select count(*), count(distinct run_uuid || key || step) from metrics group by run_uuid")
    assert counted == [(500, 500)] * WRITERS
    assert query(work.db, "select count(*), status from runs group by status") == [(WRITERS, "FINISHED")]


def test_one_fresh_sqlite_file(work: Workspace) -> None:
    """Its tables are made first, as launchers do it."""
    work.db.unlink()
    uri = f"sqlite:///{work.db}"
    prepare = f"from urepa.tracking import prepare_store; prepare_store({uri!r})"
    subprocess.run([sys.executable, "-c", prepare], env=environment(), check=True, capture_output=True)
    assert_all_there(work, start(work, uri, 0.01))


def test_a_server_that_is_away_for_20_seconds(work: Workspace) -> None:
    port = free_port()
    with server(work, port):
        writers = start(work, f"http://127.0.0.1:{port}", 0.3)
        wait_for(lambda: len(query(work.db, "select distinct run_uuid from metrics")) == WRITERS, None, "all to write")
    before = query(work.db, "select count(*) from metrics")[0][0]
    assert before < WRITERS * 500
    time.sleep(20)
    with server(work, port):
        assert_all_there(work, writers)


def test_preparing_asks_no_server() -> None:
    """It may not be up yet."""
    from urepa.tracking import prepare_store

    prepare_store("http://127.0.0.1:9")
