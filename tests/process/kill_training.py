"""Kills during training, as many as requested: files and MLflow end like those of an uninterrupted run.

    python tests/process/kill_training.py --kills 150 --seed 0

A tiny training is started again and again by the same command. Each time it gets KILL, TERM, INT, USR2, or STOP
followed by CONT or KILL, at a random moment or at a named point: while a checkpoint is written or an old one removed,
while rows are sent to MLflow, while MLflow's database is made. After a few hits the run continues to its end, and the
result is compared with the reference's: config.yaml, metrics.jsonl, the tensors of every checkpoint, summary.json, and
the one run in MLflow with its parameters, tags and values. Times and rates are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from forks import Forked
from workspace import (
    TIMINGS,
    Workspace,
    assert_same_checkpoint,
    assert_same_end,
    assert_tracked_once,
    make_cache,
    query,
    steps,
    wait_for,
)

HITS_A_RUN = 3
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGUSR2")
WRITING = ("before_file:1", "before_file:2", "after_file:1", "after_file:3", "after_json:2", "renamed:1", "in_prune:1")
SENDING = ("before_sending:1", "before_commit:1", "committed:1", "sent:1")
STOPPED_SECONDS = 0.3
OWN_TAGS = ("urepa.key", "urepa.summary", "folder", "mlflow.note.content")  # a key, a file that is compared, paths
TIMES = ("seconds", "peak_memory_bytes")


class Hit(NamedTuple):
    """The signal that a process got, and its exit code."""

    kind: str
    what: str
    code: int


def ended_with(process: Forked, name: str) -> int:
    """The exit code, which must be the signal's, from the system or from the handler; 0 if the run had ended before."""
    code, number = process.wait(), signal.Signals[name]
    assert code in (-number, 128 + number, 0), f"{name}: exit code {code}"
    return code


def at_a_moment(work: Workspace, draw: random.Random) -> Hit:
    """Up to some seconds after the process has claimed the run's folder."""
    name, seconds = draw.choice(SIGNALS), draw.uniform(0, 2)
    process = work.start()
    wait_for(partial(has_claimed, work, process), what="its lock")
    pause(process, seconds)
    process.send_signal(signal.Signals[name])
    return Hit("moment", f"{name} after {seconds:.2f} s", ended_with(process, name))


def at_a_point(points: tuple[str, ...], kind: str, work: Workspace, draw: random.Random) -> Hit:
    name, point = draw.choice(SIGNALS), draw.choice(points)
    process = work.start(arranged=("--send", f"{name}:{point}"))
    return Hit(kind, f"{name} at {point}", ended_with(process, name))


def in_creation(work: Workspace, draw: random.Random) -> Hit:
    """While the missing database is made; its lock exists before the database."""
    name, seconds = draw.choice(SIGNALS), draw.uniform(0, 2)
    assert not work.db.exists()
    process = work.start()
    wait_for(lambda: process.poll() is not None or any(work.folder.glob("*mlflow.db*[!k]")), what="the database")
    pause(process, seconds)
    process.send_signal(signal.Signals[name])
    return Hit("creation", f"{name} after {seconds:.2f} s", ended_with(process, name))


def stopped(then: signal.Signals, work: Workspace, draw: random.Random) -> Hit:
    point = draw.choice((*WRITING, *SENDING))
    process = work.start(arranged=("--send", f"SIGSTOP:{point}"))
    wait_for(lambda: process.poll() is not None or is_stopped(process.pid), what="its stop")
    time.sleep(STOPPED_SECONDS)
    process.send_signal(then)
    wait_for(lambda: has_ended(process), what="its end")
    code = process.wait()
    assert code in (0, -signal.SIGKILL), code
    return Hit(f"STOP, {then.name}", f"at {point}", code)


KINDS: tuple[Callable[[Workspace, random.Random], Hit], ...] = (
    partial(at_a_point, WRITING, "checkpoint"),
    partial(at_a_point, SENDING, "sending"),
    partial(stopped, signal.SIGKILL),
    at_a_moment,
    partial(stopped, signal.SIGCONT),
)


def pause(process: Forked, seconds: float) -> None:
    """Waits until then, or until the process has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)


def has_claimed(work: Workspace, process: Forked) -> bool:
    locks = work.folder.glob("outputs/*/seed0/.lock")
    return process.poll() is not None or any(f"pid {process.pid} " in lock.read_text() for lock in locks)


def is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_ended(process: Forked) -> bool:
    """Whether the process has ended. If it reaches a stopping point again, it is continued."""
    if process.poll() is None and is_stopped(process.pid):
        process.send_signal(signal.SIGCONT)
    return process.poll() is not None


# --- what must be the same ----------------------------------------------------------------------------------


def assert_same(work: Workspace, reference: Workspace) -> None:
    """Compares everything that the run left, in its folder and in MLflow."""
    ours, theirs = work.run, reference.run
    assert (ours / "config.yaml").read_text() == (theirs / "config.yaml").read_text()
    assert_same_end(ours, theirs)
    for step in set(steps(ours)) & set(steps(theirs)):
        assert_same_checkpoint(ours, theirs, step)
    assert summary(ours) == summary(theirs)
    assert_tracked_once(work.db, ours)
    for table, rows in in_mlflow(work.db).items():
        wanted = in_mlflow(reference.db)[table]
        assert rows == wanted, f"MLflow's {table}: {set(rows) ^ set(wanted) or 'rows that are there twice'}"
    assert [path.name for path in work.folder.glob(".*")] in ([".mlflow.db.lock"], [])


def summary(run: Path) -> dict[str, Any]:
    """summary.json without times."""
    found = json.loads((run / "summary.json").read_text())
    metrics = {key: value for key, value in found["metrics"].items() if key not in TIMINGS}
    return {key: value for key, value in found.items() if key not in TIMES} | {"metrics": metrics}


def in_mlflow(db: Path) -> dict[str, Any]:
    """The contents of MLflow's tables about runs, without ids and times."""
    found: dict[str, Any] = {}
    for table, columns in (
        ("runs", "name, status, lifecycle_stage"),
        ("experiments", "name, lifecycle_stage"),
        ("params", "key, value"),
        ("metrics", "key, step, value, is_nan"),
        ("latest_metrics", "key, step, value, is_nan"),
        ("tags", "key, value"),
        ("experiment_tags", "key, value"),
        ("datasets", "name, digest"),
    ):
        rows = query(db, f"select {columns} from {table}")
        found[table] = sorted(row for row in rows if row[0] not in (*TIMINGS, *OWN_TAGS))
    return found


# --- run after run ------------------------------------------------------------------------------------------


def endure(work: Workspace, reference: Workspace, empty_db: Path, kills: int, draw: random.Random) -> Counter[str]:
    """Hits runs `kills` times, a few hits each, every second run from the making of its database on, and compares each
    run when it has ended. Returns the number of hits of each kind."""
    struck: Counter[str] = Counter()
    hits: list[Hit] = []
    deck: list[Callable[[Workspace, random.Random], Hit]] = []
    runs = 0
    try:
        while struck.total() < kills:
            begin(work, None if runs % 2 == 0 else empty_db)
            runs, hits = runs + 1, []
            for n in range(min(HITS_A_RUN, kills - struck.total())):
                deck = deck or draw.sample(KINDS, len(KINDS))
                hits.append((in_creation if n == 0 and not work.db.exists() else deck.pop())(work, draw))
                if hits[-1].code == 0 and "CONT" not in hits[-1].kind:
                    break  # it had ended before it could be struck
                struck[hits[-1].kind] += 1
                print(f"{struck.total()} of {kills}: {hits[-1]}", flush=True)
            work.train()
            assert_same(work, reference)
    except BaseException:
        print(f"run {runs} in {work.folder}, hit by {hits}", flush=True)
        raise
    print(f"{struck.total()} kills in {runs} runs, all ended alike: {dict(struck)}", flush=True)
    return struck


def begin(work: Workspace, db: Path | None) -> None:
    """A folder with only a database, or without one."""
    for path in work.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if db is not None:
        shutil.copy(db, work.db)


def main(kills: int, seed: int, folder: Path) -> None:
    places = {name: folder / name for name in ("cache", "reference", "work", "empty")}
    for place in places.values():
        place.mkdir(parents=True)
    make_cache(places["cache"])
    reference, work = Workspace(places["reference"], places["cache"]), Workspace(places["work"], places["cache"])
    from urepa.runs.mlflow_store import connect

    empty = places["empty"] / "mlflow.db"
    connect(f"sqlite:///{empty}")
    shutil.copy(empty, reference.db)
    reference.train()
    endure(work, reference, empty, kills, random.Random(seed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new one to work in (a temporary one)")
    asked = parser.parse_args()
    if asked.folder is not None:
        main(asked.kills, asked.seed, asked.folder.resolve())
    else:
        with tempfile.TemporaryDirectory() as place:
            main(asked.kills, asked.seed, Path(place))
    sys.exit(0)
