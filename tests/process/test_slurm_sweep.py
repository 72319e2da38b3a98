"""Hydra's sweeps on a real SLURM: preempted, requeued, killed, past their time limit, with two ranks, and with arms
that fail.

All sweeps run at the same time; runs that are to be disturbed are stopped at their first checkpoint until then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, seldom
from test_parallel_training import assert_same_losses
from workspace import (
    Workspace,
    assert_same_end,
    assert_same_run,
    assert_tracked_once,
    environment,
    query,
    steps,
    wait_for,
)

from urepa.cluster.slurm_job import Book, Entry

pytestmark = pytest.mark.long(waits=True)

LAUNCHER = ("hydra/launcher=slurm_h200", "hydra.launcher.cpus_per_task=1")
GRID = ("loss.lambda_max=0,0.5", "seed=0,1")


class Sweep:
    """`python -m urepa.train -m ... hydra/launcher=slurm_h200` in a workspace."""

    def __init__(self, work: Workspace, cluster: Cluster, *more: str, **variables: str) -> None:
        self.work, self.cluster = work, cluster
        command = [sys.executable, *work.command(*work.overrides(*more), *LAUNCHER, "-m")]
        self.process = subprocess.Popen(
            command,
            cwd=work.folder,
            env=environment() | cluster.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def entry(self, *of: str) -> Entry:
        """The submission of the run with these overrides."""
        found: list[Entry] = []

        def there() -> bool:
            found[:] = [
                e for e in Book(self.work.folder / "outputs/.jobs").entries() if set(of) <= set(e.job.commands[0])
            ]
            return bool(found)

        wait_for(there, self.process, f"the submission of {of}")
        return found[0]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate()
        return self.process.returncode, out, err


def pid_of(run: Path) -> int:
    """The process that owns this run's folder."""
    found = re.match(r"pid (\d+) on", (run / ".lock").read_text())
    assert found is not None
    return int(found[1])


@contextlib.contextmanager
def stopped(sweep: Sweep, entry: Entry) -> Iterator[int]:
    """The run's process, stopped by SIGSTOP once it has a checkpoint, until the block ends."""
    run = Path(entry.job.run or "")
    wait_for(lambda: steps(run), sweep.process, f"a checkpoint of {entry.job.name}")
    pid = pid_of(run)
    os.kill(pid, signal.SIGSTOP)
    assert steps(run)[-1] < 12, "stopped too late"
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_pending(pid: int, number: int) -> bool:
    """Whether a stopped process has a pending signal of this kind."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    masks = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, re.M)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def preempted(sweep: Sweep, entry: Entry) -> None:
    with stopped(sweep, entry) as pid:
        sweep.cluster.run("scancel", "--signal=USR2", entry.id)
        wait_for(lambda: is_pending(pid, signal.SIGUSR2), sweep.process, "the signal")


def requeued(sweep: Sweep, entry: Entry) -> None:
    with stopped(sweep, entry):
        sweep.cluster.run("scontrol", "requeue", entry.id)
        there = seldom(lambda: sweep.cluster.jobs()[entry.id]["state"] == "PENDING")
        wait_for(there, sweep.process, "the requeue")


def killed(sweep: Sweep, entry: Entry) -> None:
    with stopped(sweep, entry) as pid:
        os.kill(pid, signal.SIGKILL)


def at_its_limit(sweep: Sweep, entry: Entry) -> None:
    """SLURM itself sends the signal before a limit of one minute; on a slow machine before the first step."""

    restarted = seldom(lambda: sweep.cluster.details(entry.id)["Restarts"] != "0")
    run = Path(entry.job.run or "")
    wait_for(lambda: restarted() or steps(run), sweep.process, "a checkpoint or a restart")
    if not restarted():
        with stopped(sweep, entry) as pid:
            wait_for(lambda: restarted() or is_pending(pid, signal.SIGUSR2), sweep.process, "SLURM's signal")


def grid(cluster: Cluster, work: Workspace) -> dict[str, Any]:
    """Two arms with two seeds, two at a time; one run is preempted, one requeued, one killed."""
    sweep = Sweep(work, cluster, *GRID, "hydra.launcher.array_parallelism=2")
    most, stories = (
        0,
        {
            ("loss.lambda_max=0", "seed=1"): preempted,
            ("loss.lambda_max=0.5", "seed=0"): requeued,
            ("loss.lambda_max=0.5", "seed=1"): killed,
        },
    )
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(story, sweep, sweep.entry(*of)) for of, story in stories.items()]
        array = sweep.entry().id.partition("_")[0]
        while sweep.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                sweep.process.wait(0.5)
            running = [
                j for j, job in cluster.jobs().items() if j.startswith(f"{array}_") and job["state"] == "RUNNING"
            ]
            most = max(most, len(running))
        for future in futures:
            future.result()
    restarts = {of: int(cluster.details(sweep.entry(*of).id)["Restarts"]) for of in stories}
    return {"end": sweep.end(), "most": most, "restarts": restarts, "details": cluster.details(f"{array}_0")}


def short_of_time(cluster: Cluster, work: Workspace) -> dict[str, Any]:
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=40")
    sweep = Sweep(work, cluster, *limit)
    at_its_limit(sweep, sweep.entry())
    return {"end": sweep.end(), "restarts": cluster.details(sweep.entry().id)["Restarts"]}


def two_ranks(cluster: Cluster, work: Workspace) -> dict[str, Any]:
    """Preempted too: the second rank must give the first time to requeue. The launcher is killed before that, and
    started again."""
    first = Sweep(work, cluster, "hydra.launcher.gpus=2")
    entry = first.entry()
    first.process.kill()
    first.end()
    sweep = Sweep(work, cluster, "hydra.launcher.gpus=2")
    preempted(sweep, entry)
    return {"end": sweep.end(), "details": cluster.details(entry.id)}


def bad_arms(cluster: Cluster, work: Workspace) -> dict[str, Any]:
    """One raises an unexpected exception, one may not write (a user's mistake), one is good."""
    hooks = work.folder / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(RAISES)
    path = os.pathsep.join(filter(None, (str(hooks), os.environ.get("PYTHONPATH"))))
    sweep = Sweep(work, cluster, "backbone.head_dim=16,8,32", "tracking=none", PYTHONPATH=path)
    end = sweep.end()
    ids = [sweep.entry(f"backbone.head_dim={n}").id for n in (16, 8, 32)]
    wait_for(seldom(lambda: not {cluster.jobs()[i]["state"] for i in ids} & {"RUNNING", "COMPLETING"}))
    return {"end": end, "details": [cluster.details(i) for i in ids]}


# in every Python process of a sweep: the runs of one arm fail when they open their metrics
RAISES = """
import sys

def refuse(event, arguments):
    path = str(arguments[0]) if event == "open" else ""
    if "head_dim=16" in path and path.endswith("metrics.jsonl"):
        raise ZeroDivisionError("as the test asks")
    if "head_dim=8" in path and path.endswith("metrics.jsonl"):
        raise PermissionError(13, "Permission denied", path)

sys.addaudithook(refuse)
"""
STORIES = (grid, two_ranks, bad_arms, short_of_time)


@pytest.fixture(scope="module")
def sweeps(
    request: pytest.FixtureRequest, slurm: Cluster, make_workspace: Callable[[], Workspace]
) -> Iterator[dict[str, tuple[Workspace, Future[dict[str, Any]]]]]:
    """The sweeps of the collected tests, and their folders."""
    asked = [item.name for item in request.session.items]
    wanted = [story for story in STORIES if f"test_{story.__name__}" in asked]
    works = {story: make_workspace() for story in wanted}
    with ThreadPoolExecutor(len(STORIES)) as pool:
        yield {story.__name__: (work, pool.submit(story, slurm, work)) for story, work in works.items()}


Told = dict[str, tuple[Workspace, "Future[dict[str, Any]]"]]


def runs_of(work: Workspace) -> dict[tuple[float, int], Path]:
    """The runs by λ and seed."""
    return {(float(c["loss"]["lambda_max"]), c["seed"]): run for run in work.runs() if (c := config_of(run))}


def config_of(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return config


def test_grid(sweeps: Told, work: Workspace) -> None:
    undisturbed = work
    undisturbed.train("tracking=none", *GRID, "-m")
    work, future = sweeps["grid"]
    saw = future.result()
    code, out, err = saw["end"]
    assert code == 0, (out, err)
    assert out.count("done    loss.lambda_max=") == 4
    assert saw["most"] == 2, "array parallelism is used, and kept to"
    assert saw["details"]["ArrayTaskThrottle"] == "2"
    assert saw["details"]["Requeue"] == "1"
    assert saw["details"]["TresPerNode"] == "gres:gpu:h200:1"
    assert set(saw["restarts"].values()) == {1}, saw["restarts"]
    ours, theirs = runs_of(work), runs_of(undisturbed)
    assert sorted(ours) == sorted(theirs) == [(0.0, 0), (0.0, 1), (0.5, 0), (0.5, 1)]
    for which, run in ours.items():
        assert_same_run(run, theirs[which])
        assert_tracked_once(work.db, run)
    assert query(work.db, "select distinct status from runs") == [("FINISHED",)]


def test_two_ranks(sweeps: Told, reference: Workspace) -> None:
    work, future = sweeps["two_ranks"]
    saw = future.result()
    assert saw["end"][0] == 0, saw["end"]
    assert saw["details"]["Restarts"] == "1"
    assert saw["details"]["TresPerNode"] == "gres:gpu:h200:2"
    assert saw["end"][1].startswith("1 of 1 runs are in SLURM's queue from an earlier start\ntheir logs: ")
    (entry,) = Book(work.folder / "outputs/.jobs").entries()
    assert entry.job.commands[0][-2] == "--config-path"
    assert Path(entry.job.commands[0][-1]).parent == work.folder / "outputs/.jobs/conf"
    assert json.loads((work.run / "summary.json").read_text())["processes"] == 2
    assert_same_losses(work.run, reference.run)
    assert_tracked_once(work.db, work.run)


def test_bad_arms(sweeps: Told, reference: Workspace) -> None:
    """The unexpected failure is tried three times and reported by the launcher and by SLURM; the mistake is tried once;
    the good arm finishes."""
    work, future = sweeps["bad_arms"]
    saw = future.result()
    code, out, err = saw["end"]
    assert code == 1
    assert "error: 2 of 3 runs did not finish (backbone.head_dim=16, backbone.head_dim=8)" in err.splitlines()[-1]
    assert "Traceback" not in err
    raised = "failed 3 times at step 0 and is given up; the last time: ZeroDivisionError: "
    assert f"FAILED  backbone.head_dim=16: backbone.head_dim=16 {raised}" in out
    assert re.search(
        r"FAILED  backbone.head_dim=8: \S*outputs/\S+/metrics.jsonl: Permission denied; give a place", out
    ), out
    assert "done    backbone.head_dim=32" in out
    assert [(d["JobState"], d["ExitCode"], d["Restarts"]) for d in saw["details"]] == [
        ("FAILED", "1:0", "3"),
        ("FAILED", "1:0", "0"),
        ("COMPLETED", "0:0", "0"),
    ]
    (good,) = (run for run in work.runs() if (run / "summary.json").exists())
    assert_same_run(good, reference.run)


def test_short_of_time(sweeps: Told, reference: Workspace) -> None:
    work, future = sweeps["short_of_time"]
    saw = future.result()
    assert saw["end"][0] == 0, saw["end"]
    assert int(saw["restarts"]) >= 1
    assert_same_end(work.run, reference.run)  # how often SLURM stops it depends on the machine
