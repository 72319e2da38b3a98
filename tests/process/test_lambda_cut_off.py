"""Runs that cut λ off: by measured similarity, killed and resumed and in two processes; and at a step, in the config of
an earlier version."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from workspace import Workspace, assert_same_checkpoint, assert_same_end, steps, without_timings

from urepa.method.schedules.similarity_cutoff import SimilarityCutoff
from urepa.runs.run_folder import run_name

DELAY = SimilarityCutoff.delay
LENGTH = 16
CUT = (  # update 0 measures enough, and update DELAY is the first without λ
    "schedule=similarity_cutoff",
    "schedule.threshold=-1",
    "schedule.ema_decay=0.8",
    "loss.warmup_steps=0",
    f"trainer.max_steps={LENGTH}",
    "trainer.log_every=1",
    "trainer.validate_every=8",
    "trainer.checkpoint_every=5",
    "trainer.keep_last=9",
    "tracking=none",
)


@pytest.fixture(scope="module")
def whole(make_workspace: Callable[[], Workspace]) -> Workspace:
    here = make_workspace()
    here.train(*CUT)
    return here


def state(run: Path, step: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / f"checkpoints/step_{step:08d}/state.json").read_text())["schedule"]
    return found


def test_a_cutoff_takes_effect_after_its_delay_and_the_teacher_is_no_longer_used(whole: Workspace) -> None:
    rows = without_timings(whole.run)
    assert [row["train/lambda"] for row in rows] == [0.5] * DELAY + [0.0] * (LENGTH - DELAY)
    assert [row["step"] - 1 for row in rows if "train/token" in row] == list(range(DELAY))
    assert "val/token" in rows[-1], "validations still ask it"
    average = rows[0]["train/cosine"]
    for row in rows:
        average = 0.8 * average + 0.2 * row.get("train/cosine", average)
        assert row["train/similarity_ema"] == pytest.approx(average, rel=1e-6)
    assert (state(whole.run, 5)["is_closed"], state(whole.run, 10)["is_closed"]) == (False, True)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(work: Workspace, whole: Workspace) -> None:
    """Between the measurement and the cut-off, and after it."""
    for backward, saved in ((6, 5), (8, 10)):  # counted from where a process begins
        work.train(*CUT, arranged=("--kill", f"after_backward:{backward}"), code=-signal.SIGKILL)
        assert steps(work.run)[-1] == saved
    work.train(*CUT)
    assert_same_end(work.run, whole.run)
    for step in steps(whole.run):
        assert state(work.run, step) == state(whole.run, step)
        assert_same_checkpoint(work.run, whole.run, step)


def test_two_processes_equal_one(work: Workspace, whole: Workspace) -> None:
    work.train(*CUT, ranks=2)
    for ours, theirs in zip(without_timings(work.run), without_timings(whole.run), strict=True):
        assert ours.keys() == theirs.keys(), theirs["step"]
        for key in ("train/lambda", "train/similarity_ema", "train/diffusion", "val/token"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), (theirs["step"], key)


STOPPED = (
    "schedule=cosine",
    "schedule.stop_step=5",
    "trainer.checkpoint_every=3",
    "trainer.keep_last=9",
    "tracking=none",
)


def test_a_run_with_the_former_stop_key_continues(make_workspace: Callable[[], Workspace]) -> None:
    """Its folder's name and its config have the former key; the same command with the present key continues it."""
    whole, begun = make_workspace(), make_workspace()
    whole.train(*STOPPED)
    begun.train(*STOPPED, arranged=("--kill", "after_backward:7"), code=-signal.SIGKILL)
    assert steps(begun.run)[-1] == 6
    config = yaml.safe_load((begun.run / "config.yaml").read_text())
    config["loss"]["stop_step"] = config["schedule"].pop("stop_step")
    del config["schedule"]["decay_steps"]
    (begun.run / "config.yaml").write_text(yaml.safe_dump(config | {"schema": 5}, sort_keys=False))
    overrides = [o.replace("schedule.stop_step", "loss.stop_step") for o in begun.overrides(*STOPPED)]
    former = begun.folder / "outputs" / run_name(overrides, 0)
    former.parent.mkdir()
    shutil.move(begun.run, former)
    begun.train(*STOPPED)
    assert begun.run == former
    assert_same_end(begun.run, whole.run)
    assert [row["train/lambda"] for row in without_timings(begun.run) if "train/lambda" in row][-4:] == [0] * 4
