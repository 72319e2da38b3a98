"""Copies of metrics.jsonl in files: every row is there once, whatever is killed, removed or full."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tracked import Value, assert_same, in_csv, in_tensorboard, in_wandb

from urepa.runs.metrics import MetricsLog
from urepa.runs.trackers.csv_sender import CSVSender
from urepa.runs.trackers.following_sender import Follower
from urepa.runs.trackers.several_sender import SeveralSenders
from urepa.runs.trackers.tensorboard_sender import TensorBoardSender
from urepa.runs.trackers.wandb_sender import WandbSender

ROWS: list[dict[str, Any]] = [
    {"step": 5, "train/total": 2.0, "val/token": 0.25},
    {"step": 10, "train/total": 1.0, "train/x": math.inf},
    {"step": 10, "final/fd/pixels": 4.0},
    {"step": 10, "final/fd/pixels": None},
]


def csv_of(folder: Path) -> Follower:
    return CSVSender(folder)


def tensorboard_of(folder: Path) -> Follower:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    return TensorBoardSender(folder, "x")


def wandb_of(folder: Path) -> Follower:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    tags = {"experiment": "quickstart", "arm": "a"}
    return WandbSender("p", None, "offline", 60.0, folder=folder, name="x", params={"seed": 0}, run_tags=tags)


KINDS: list[Any] = [(csv_of, in_csv), (tensorboard_of, in_tensorboard)]
BY_PROCESS = pytest.param(wandb_of, in_wandb, marks=pytest.mark.slow)  # W&B starts a process of its own
kinds = pytest.mark.parametrize(("build", "read"), [*KINDS, BY_PROCESS], ids=["csv", "tensorboard", "wandb"])
Build = Callable[[Path], Follower]
Read = Callable[[Path], list[Value]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for row in ROWS:
        log.append(row)
    return tmp_path


def send(sender: Any, status: str = "FINISHED") -> None:
    sender.start({})
    sender.close(status, [], {"guard.skipped_steps": "0"})


@kinds
def test_every_row_arrives_once(folder: Path, build: Build, read: Read) -> None:
    """Also those of a second process, and none anew if there is nothing to send."""
    assert not build(folder).has_all()
    send(build(folder), "KILLED")
    assert not build(folder).has_all()
    MetricsLog(folder / "metrics.jsonl").append({"step": 10, "final/fd/pixels": 3.0})
    send(build(folder))
    assert build(folder).has_all()
    send(build(folder))
    assert build(folder).has_all()
    assert_same(read(folder), folder)


@kinds
def test_rows_that_are_computed_again_are_not_sent_again(folder: Path, build: Build, read: Read) -> None:
    """A run that resumes from its checkpoint repeats the rows after it, with other times."""
    send(build(folder), "KILLED")
    log = MetricsLog(folder / "metrics.jsonl")
    log.cut(1, 5)
    for row in ROWS[1:]:
        log.append(row)
    log.append({"step": 15, "train/total": 0.5})
    send(build(folder))
    assert_same(read(folder), folder)


KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
    import test_trackers_of_files as tests
    from urepa.runs.metrics import MetricsLog
    folder = Path(sys.argv[1])
    sender = getattr(tests, sys.argv[3])(folder)
    log = MetricsLog(folder / "metrics.jsonl")
    sender.start({})
    for step in range(20, 40):
        log.append({"step": step, "train/total": float(step)})
        sender.wake()
        time.sleep(0.01)
    while sender._handled.step < 30:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@kinds
def test_a_killed_process_doubles_and_loses_nothing(folder: Path, build: Build, read: Read) -> None:
    build(folder)
    arguments = [str(folder), str(Path(__file__).parent), build.__name__]
    # a process of W&B's own that this one started would be shared with the other, and would outlive it
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], check=False, env=own)
    assert ended.returncode == -signal.SIGKILL
    send(build(folder))
    assert build(folder).has_all()
    assert_same(read(folder), folder)


@pytest.mark.parametrize(("build", "read"), KINDS, ids=["csv", "tensorboard"])
@pytest.mark.parametrize("damage", ["removed", "shorter", "longer"])
def test_a_file_that_was_changed_is_made_whole(folder: Path, build: Build, read: Read, damage: str) -> None:
    sender: Any = build(folder)
    send(sender)
    if damage == "removed":
        sender.file.unlink()
    elif damage == "shorter":
        os.truncate(sender.file, sender.file.stat().st_size - 3)
    else:  # written by a process that was killed before it stored its cursor
        with open(sender.file, "ab") as file:
            file.write(b"5,1,half")
    assert build(folder).has_all() == (damage == "longer")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        send(build(folder))
    assert any("is shorter than it was, or gone" in str(one.message) for one in said) == (damage != "longer")
    assert_same(read(folder), folder)


@pytest.mark.parametrize(("build", "read"), KINDS, ids=["csv", "tensorboard"])
def test_a_full_disk_stops_no_run(folder: Path, build: Build, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest arrives with the next command."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sender = build(folder)
    sender.patience = 0.3
    with warnings.catch_warnings(record=True) as said, monkeypatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr("urepa.runs.trackers.appending_sender.os", SimpleNamespace(fsync=full))
        send(sender)
    words = " ".join(str(one.message) for one in said)
    assert "is not answering, will try again" in words
    assert "did not take 4 rows in time" in words
    send(build(folder))
    assert_same(read(folder), folder)


def test_one_of_several_that_fails_keeps_none_of_the_others(folder: Path) -> None:
    (folder / "tensorboard").write_text("a file where its folder would be")
    bad = TensorBoardSender(folder, "x")
    bad.patience = 0.3
    several = SeveralSenders([bad, csv_of(folder)])
    with pytest.warns(UserWarning, match="did not take 4 rows in time"):
        send(several)
    assert_same(in_csv(folder), folder)
    assert not several.has_all()
    assert csv_of(folder).has_all()


@pytest.mark.slow
def test_a_session_whose_end_was_not_recorded_is_replaced(folder: Path) -> None:
    """W&B has written the file whole, and the process is killed before it stores its cursor."""
    sender: Any = wandb_of(folder)
    sender.start({})
    while sender._handled.step < 10 or sender._next[1] < len(ROWS):
        sender.wake()
        time.sleep(0.02)
    sender._run.finish()
    sender._done.set()
    assert_same(in_wandb(folder), folder)
    assert not wandb_of(folder).has_all()
    send(wandb_of(folder))
    assert wandb_of(folder).has_all()
    assert_same(in_wandb(folder), folder)


@pytest.mark.slow
def test_an_upload_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rows are in W&B's files, and are uploaded when the command runs again."""
    wandb_of(folder)
    tools = tmp_path / "tools"
    tools.mkdir()
    python = tools / "python"
    monkeypatch.setattr("urepa.runs.trackers.wandb_sender.sys.executable", str(python))

    def upload(body: str, patience: float) -> WandbSender:
        python.write_text(f"#!/bin/sh\n{body}\n")
        python.chmod(0o755)
        sender = WandbSender("p", None, "online", patience, folder=folder, name="x", params={}, run_tags={})
        send(sender)
        return sender

    with pytest.warns(UserWarning, match="did not take the end of"):
        sender = upload(f"echo $$ > {tools}/pid; exec sleep 600", 5.0)
    assert not sender.has_all()
    pid = int((tools / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.warns(UserWarning, match="wandb sync failed: no route"):
        upload("echo no route; exit 1", 0.5)
    upload(f'echo "$@" >> {tools}/said', 60.0)
    (said,) = (tools / "said").read_text().splitlines()
    assert said.startswith(f"-m wandb sync --yes {folder}/wandb/offline-run-")
    assert sender.has_all()
    assert_same(in_wandb(folder), folder)
