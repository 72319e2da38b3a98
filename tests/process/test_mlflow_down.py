"""MLflow that is down, late or killed: training never stops, and every row arrives once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from workspace import (
    Workspace,
    assert_same_run,
    assert_tracked_once,
    environment,
    query,
    wait_for,
)

pytestmark = pytest.mark.long(waits=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# jobs of MLflow's own: for them a server starts seven more processes, which take 20 s of CPU
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextlib.contextmanager
def server(work: Workspace, port: int) -> Iterator[None]:
    """A real `mlflow server` over the workspace's sqlite file; killed at the end, without a shutdown."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{work.db}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(work.folder / "artifacts")]
    with open(work.folder / "server.txt", "a") as log:
        process = subprocess.Popen(
            command, cwd=work.folder, env=environment() | NO_JOBS, stdout=log, stderr=log, start_new_session=True
        )

    def answers() -> bool:
        assert process.poll() is None, (work.folder / "server.txt").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_for(answers, None, "the server")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_rows_are_sent_when_the_server_is_up_again(work: Workspace, reference: Workspace) -> None:
    """Down from first to last step, then up for the same command; then killed during another run."""
    port = free_port()
    tracking = f"tracking.uri=http://127.0.0.1:{port}"
    done = work.train(tracking, "tracking.patience=3")
    assert "is not answering" in done.stderr
    assert "did not take 7 rows in time" in done.stderr
    assert "Traceback" not in done.stderr
    assert_same_run(work.run, reference.run)
    with server(work, port):
        assert "is finished" in work.train(tracking).stdout
        assert_tracked_once(work.db, work.run)
        work.train(tracking)
    run_id = assert_tracked_once(work.db, work.run)
    sql = "select status from runs where run_uuid = ?"
    assert query(work.db, sql, run_id) == [("FINISHED",)]
    assert list((work.folder / "artifacts").rglob("losses.png")), "files arrive late too"


def test_a_server_that_is_killed_during_a_run(work: Workspace, reference: Workspace) -> None:
    port = free_port()
    overrides = (f"tracking.uri=http://127.0.0.1:{port}", "tracking.patience=120")
    with server(work, port):
        process = work.start(*overrides)
        wait_for(lambda: query(work.db, "select 1 from metrics"), process, "the first metrics")
    with server(work, port):
        assert process.wait() == 0, (work.folder / "stderr.txt").read_text()
        work.train(*overrides)
    assert_same_run(work.run, reference.run)
    assert_tracked_once(work.db, work.run)


def test_two_runs_at_once_with_one_new_sqlite_file(work: Workspace) -> None:
    work.db.unlink()
    both = [work.start("trainer.max_steps=4", f"seed={seed}") for seed in (0, 1)]
    assert [p.wait() for p in both] == [0, 0], (work.folder / "stderr.txt").read_text()
    runs = work.runs()
    assert len(runs) == 2
    assert len({assert_tracked_once(work.db, run) for run in runs}) == 2
    assert len(query(work.db, "select name from experiments where name = 'urepa'")) == 1


def test_a_new_database_in_a_missing_folder(work: Workspace) -> None:
    """tracking.uri may point below a folder that does not exist yet."""
    shutil.rmtree(work.folder / "elsewhere", ignore_errors=True)
    work.train("trainer.max_steps=2", "tracking.uri=sqlite:///elsewhere/deep/m.db")
    assert_tracked_once(work.folder / "elsewhere" / "deep" / "m.db", work.run)
