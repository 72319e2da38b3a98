"""A run that is killed at any point and started again by the same command ends bit for bit like an uninterrupted
one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from forks import Forked
from workspace import (
    EVALUATED,
    Workspace,
    assert_same_run,
    assert_tracked_once,
    last_checkpoint,
    one_line_error,
    steps,
    wait_for,
)

pytestmark = pytest.mark.long

RANDOM_KILLS = int(os.environ.get("UREPA_RANDOM_KILLS", "2"))
UNTRACKED = "tracking=none"


def killed(work: Workspace, point: str, *more: str) -> None:
    """Runs the same command until SIGKILL reaches it at the named point."""
    work.train(*more, arranged=("--kill", point), code=-signal.SIGKILL)


def within_steps_and_validations(work: Workspace, reference: Workspace, evaluated: Workspace) -> None:
    for point, left in (
        ("validated:2", 6),  # two validations done, the second not yet in metrics.jsonl
        ("in_validation:2", 6),  # between the groups of the validation at step 8
        ("after_backward:5", 9),  # gradients are there, the update is not
    ):
        killed(work, point, UNTRACKED)
        assert steps(work.run)[-1] == left, point
    work.train(UNTRACKED)
    assert_same_run(work.run, reference.run)


def while_a_checkpoint_is_written(work: Workspace, reference: Workspace, evaluated: Workspace) -> None:
    for point, left in (
        ("before_file:1", []),  # the first checkpoint, at step 3
        ("after_file:4", [3]),  # weights of the next one, at step 4
        ("after_file:2", [3]),  # weights and EMA
        ("after_file:3", [3]),  # all tensors
        ("after_json:2", [3]),  # state.json, not yet renamed
        ("renamed:1", [3, 4]),
    ):
        killed(work, point, UNTRACKED)
        assert steps(work.run) == left, point
    work.train(UNTRACKED)
    assert_same_run(work.run, reference.run)


def while_old_checkpoints_go(work: Workspace, reference: Workspace, evaluated: Workspace) -> None:
    killed(work, "in_prune:1", UNTRACKED)
    assert len(steps(work.run)) >= 2
    doomed = [p for p in (work.run / "checkpoints").iterdir() if p.name.startswith(".")]
    assert len(doomed) == 1, "one was half deleted"
    work.train(UNTRACKED)
    assert_same_run(work.run, reference.run)


def after_the_last_step(work: Workspace, reference: Workspace, evaluated: Workspace) -> None:
    """The evaluation's row is written, the summary is not; before that, half a line of metrics."""
    for point in ("half_line:3", "before_summary:1", "before_summary:1"):
        killed(work, point, *EVALUATED)
    assert not (work.run / "summary.json").exists()
    work.train(*EVALUATED)
    assert_same_run(work.run, evaluated.run)
    assert_tracked_once(work.db, work.run)


def while_metrics_are_sent(work: Workspace, reference: Workspace, evaluated: Workspace) -> None:
    """Each point in a separate run: with a slow start of MLflow there may be only a single batch to send."""
    for point in ("before_sending:1", "before_commit:1", "committed:1", "sent:1"):
        killed(work, point)
        work.train()
        assert_same_run(work.run, reference.run)
        assert_tracked_once(work.db, work.run)
        shutil.rmtree(work.folder / "outputs")


STORIES = (
    while_a_checkpoint_is_written,
    while_metrics_are_sent,
    within_steps_and_validations,
    after_the_last_step,
    while_old_checkpoints_go,
)


@pytest.fixture(scope="module")
def scenarios(
    request: pytest.FixtureRequest,
    make_workspace: Callable[[], Workspace],
    reference: Workspace,
    evaluated: Workspace,
) -> Iterator[dict[str, Future[None]]]:
    """The scenarios of the collected tests, two at a time: each is a chain of processes that keeps about one core
    busy."""
    asked = {item.name for item in request.session.items}
    with ThreadPoolExecutor(2) as pool:
        yield {
            story.__name__: pool.submit(story, make_workspace(), reference, evaluated)
            for story in STORIES
            if f"test_a_killed_run_ends_like_an_uninterrupted_one[{story.__name__}]" in asked
        }


@pytest.mark.parametrize("story", [story.__name__ for story in STORIES])
def test_a_killed_run_ends_like_an_uninterrupted_one(scenarios: dict[str, Future[None]], story: str) -> None:
    scenarios[story].result()


def test_kills_at_random_moments(work: Workspace, reference: Workspace, kill_seed: int) -> None:
    """UREPA_RANDOM_KILLS moments, counted from when a process has its folder; a run that ends before its moment is
    compared and started again."""
    draw, kills = random.Random(kill_seed), 0
    while kills < RANDOM_KILLS:
        process = work.start()
        wait_for(partial(lock_taken_or_ended, work, process), what="its lock")
        time.sleep(draw.uniform(0, 2))
        process.kill()
        code = process.wait()
        if code == -signal.SIGKILL:
            kills += 1
            print(f"kill {kills}: checkpoints {[steps(run) for run in work.runs()]}")  # of none, before its config
            continue
        assert code == 0
        assert_same_run(work.run, reference.run)
        assert_tracked_once(work.db, work.run)
        shutil.rmtree(work.folder / "outputs")
    work.train()
    assert_same_run(work.run, reference.run)
    assert_tracked_once(work.db, work.run)


def test_a_half_removed_checkpoint_is_removed(copied: Workspace, reference: Workspace) -> None:
    """After a kill between the last checkpoint and the summary no later save would remove it."""
    newest = _finished_but_for_the_summary(copied)
    shutil.copytree(newest, newest.with_name(".step_00000003.tmp"))
    copied.train()
    assert_same_run(copied.run, reference.run)


def lock_taken_or_ended(work: Workspace, process: Forked) -> bool:
    """Whether this process has claimed the run's folder, or has already ended because its run is finished."""
    locks = work.folder.glob("outputs/*/seed0/.lock")
    return process.poll() is not None or any(f"pid {process.pid} " in lock.read_text() for lock in locks)


def _finished_but_for_the_summary(work: Workspace) -> Path:
    (work.run / "summary.json").unlink()
    return last_checkpoint(work.run)


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "no state.json"])
def test_a_damaged_checkpoint_is_skipped(copied: Workspace, reference: Workspace, damage: str) -> None:
    newest = _finished_but_for_the_summary(copied)
    file = newest / "optimizer.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "corrupted":
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
    else:
        (newest / "state.json").unlink()
    with open(copied.run / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 14, "train/to')
    done = copied.train()
    assert f"skipping the damaged checkpoint {copied.run}/checkpoints/step_00000012" in done.stderr
    assert "resuming" in done.stdout
    assert "at step 9" in done.stdout
    assert_same_run(copied.run, reference.run)
    assert_tracked_once(copied.db, copied.run)


def changed(file: Path, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Changes a file's lines and returns its new content."""
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    return file.read_bytes()


def test_missing_rows_before_a_checkpoint_are_refused(copied: Workspace, reference: Workspace) -> None:
    """Cut after a whole line, or one byte earlier: refused, and nothing changes. When the rows are restored, the run
    continues; also when the file is moved away, and then the result names what is missing."""
    _finished_but_for_the_summary(copied)
    shutil.rmtree(last_checkpoint(copied.run))
    file = copied.run / "metrics.jsonl"
    whole = file.read_bytes()
    for change, why in (
        (lambda lines: lines[:3], "it has 3 rows up to that step, not 5"),
        (lambda lines: [lines[0], b"#" + lines[1][1:], *lines[2:]], "line 2 is not JSON"),
    ):
        file.write_bytes(whole)
        now = changed(file, change)
        for more in ((), (f"resume={copied.run.relative_to(copied.folder)}", "trainer.max_steps=14")):
            said = one_line_error(copied.train(*more, UNTRACKED, code=1, bare=bool(more)))
            assert f"metrics.jsonl is not what it was at the checkpoint of step 9 ({why}): put the file back" in said
            assert file.read_bytes() == now
            assert "max_steps: 12" in (copied.run / "config.yaml").read_text()
    file.rename(copied.folder / "before.jsonl")
    killed(copied, "after_backward:2", UNTRACKED)
    done = copied.train(UNTRACKED)
    assert "has none of the 5 rows that the checkpoint of step 9 counts: a new one begins" in done.stderr
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [row["step"] for row in rows] == [10, 12]
    assert json.loads((copied.run / "summary.json").read_text())["step"] == 12
    file.write_bytes(whole)
    assert_same_run(copied.run, reference.run)


def test_damaged_rows_after_the_checkpoint_are_computed_again(copied: Workspace, reference: Workspace) -> None:
    """In rows that are cut off anyway, and half a line after them."""
    _finished_but_for_the_summary(copied)
    shutil.rmtree(last_checkpoint(copied.run))
    changed(copied.run / "metrics.jsonl", lambda lines: [*lines[:-1], b"#" + lines[-1][1:], b'{"step": 14, "tra'])
    copied.train()
    assert_same_run(copied.run, reference.run)
    assert_tracked_once(copied.db, copied.run)


def test_an_edited_state_is_a_damaged_checkpoint(copied: Workspace, reference: Workspace) -> None:
    newest = _finished_but_for_the_summary(copied)
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(state | {"step": 11, "files": {}, "metrics_rows": 3}))
    done = copied.train()
    assert f"skipping the damaged checkpoint {newest}: state.json has changed since it was written" in done.stderr
    assert "at step 9" in done.stdout
    assert_same_run(copied.run, reference.run)


def test_a_damaged_checkpoint_never_displaces_a_valid_one(copied: Workspace, reference: Workspace) -> None:
    """With keep_last=1 the run continues from step 9 beside a damaged step 12, is killed after its next checkpoint, and
    still has a valid one."""
    newest = _finished_but_for_the_summary(copied)
    os.truncate(newest / "weights.safetensors", 10)
    killed(copied, "after_backward:2", "trainer.checkpoint_every=1", "trainer.keep_last=1")
    assert 10 in steps(copied.run)
    done = copied.train("trainer.keep_last=1")
    assert "at step 10" in done.stdout
    (samples,) = re.findall(r"^samples +(.*)$", done.stdout, re.MULTILINE)
    assert samples == "100 training, 20 validation, 20 test; 12 steps of 8 are 1 epoch"
    ours, theirs = last_checkpoint(copied.run), last_checkpoint(reference.run)
    for file in theirs.glob("*.safetensors"):
        assert (ours / file.name).read_bytes() == file.read_bytes()
