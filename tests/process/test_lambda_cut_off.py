"""λ that a run cuts off: by the similarity it measures, killed and resumed and in two processes; by a step, in the
config of an earlier version."""

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

DELAY = SimilarityCutoff.delay
LENGTH = 24
CUT = (
    "schedule=similarity_cutoff",
    "schedule.ema_decay=0.8",
    f"trainer.max_steps={LENGTH}",
    "trainer.log_every=1",
    "trainer.validate_every=12",
    "trainer.checkpoint_every=5",
    "trainer.keep_last=9",
    "tracking=none",
)


@pytest.fixture(scope="module")
def open_throughout(make_workspace: Callable[[], Workspace]) -> list[float]:
    """The moving average of a run that never reaches its threshold, by update."""
    here = make_workspace()
    here.train(*CUT, "schedule.threshold=1")
    rows = without_timings(here.run)
    assert all(row["train/lambda"] == pytest.approx(0.5 * min(row["step"] - 1, 4) / 4) for row in rows)
    return [row["train/similarity_ema"] for row in rows]


@pytest.fixture(scope="module")
def threshold(open_throughout: list[float]) -> str:
    """One that is reached after update 7: it acts at update 7 + DELAY."""
    at = 7
    assert max(open_throughout[:at]) < open_throughout[at], "the similarity rises in the first updates"
    return f"schedule.threshold={(max(open_throughout[:at]) + open_throughout[at]) / 2}"


@pytest.fixture(scope="module")
def whole(make_workspace: Callable[[], Workspace], threshold: str) -> Workspace:
    here = make_workspace()
    here.train(*CUT, threshold)
    return here


def state(run: Path, step: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / f"checkpoints/step_{step:08d}/state.json").read_text())["schedule"]
    return found


def test_it_acts_as_many_updates_later_and_the_teacher_is_not_asked_again(
    whole: Workspace, open_throughout: list[float]
) -> None:
    rows = without_timings(whole.run)
    averages = [row["train/similarity_ema"] for row in rows]
    first = 7 + DELAY
    assert averages[:first] == open_throughout[:first]
    assert [row["step"] - 1 for row in rows if row["train/lambda"] == 0] == [0, *range(first, LENGTH)]
    assert [row["step"] - 1 for row in rows if "train/token" in row] == list(range(first))
    assert "val/token" in rows[-1], "validations still ask it"
    assert (state(whole.run, 10)["is_closed"], state(whole.run, 20)["is_closed"]) == (False, True)


@pytest.mark.parametrize("at", [11, 21])  # between the measurement and the cut-off, and after it
def test_killed_and_resumed_it_is_the_same_run(work: Workspace, whole: Workspace, threshold: str, at: int) -> None:
    work.train(*CUT, threshold, arranged=("--kill", f"after_backward:{at}"), code=-signal.SIGKILL)
    assert steps(work.run)[-1] == 5 * (at // 5)
    work.train(*CUT, threshold)
    assert_same_end(work.run, whole.run)
    for step in steps(whole.run):
        assert state(work.run, step) == state(whole.run, step)
        assert_same_checkpoint(work.run, whole.run, step)


def test_two_processes_are_as_one(work: Workspace, whole: Workspace, threshold: str) -> None:
    work.train(*CUT, threshold, ranks=2)
    for ours, theirs in zip(without_timings(work.run), without_timings(whole.run), strict=True):
        assert ours.keys() == theirs.keys(), theirs["step"]
        for key in ("train/lambda", "train/similarity_ema", "train/diffusion", "val/token"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), (theirs["step"], key)


STOPPED = ("schedule.stop_step=5", "trainer.checkpoint_every=3", "trainer.keep_last=9", "tracking=none")


@pytest.mark.parametrize("shape", ["constant", "cosine"])
def test_a_run_that_an_earlier_version_stops_at_a_step_goes_on(
    make_workspace: Callable[[], Workspace], shape: str
) -> None:
    """Its folder has the former key in its name and in its configs; the same command with the present key goes on."""
    choice = (f"schedule={shape}",) if shape == "cosine" else ()
    whole, begun = make_workspace(), make_workspace()
    whole.train(*STOPPED, *choice)
    begun.train(*STOPPED, *choice, arranged=("--kill", "after_backward:7"), code=-signal.SIGKILL)
    assert steps(begun.run)[-1] == 6
    files = [begun.run / "config.yaml"]
    for file in files:
        config = yaml.safe_load(file.read_text())
        config["loss"]["stop_step"] = config["schedule"].pop("stop_step")
        config["schedule"].pop("decay_steps", None)
        file.write_text(yaml.safe_dump(config | {"schema": 5}, sort_keys=False))
    now = begun.run.parent
    former = now.with_name(now.name.replace("schedule.stop_step", "loss.stop_step"))
    if former == now:  # a long name ends in a hash
        former = now.with_name(former_name(begun, choice))
    shutil.move(now, former)
    begun.train(*STOPPED, *choice)
    assert begun.run.parent == former
    assert_same_end(begun.run, whole.run)
    assert [row["train/lambda"] for row in without_timings(begun.run) if "train/lambda" in row][-1] == 0


def former_name(work: Workspace, choice: tuple[str, ...]) -> str:
    from urepa.runs.run_folder import run_name

    overrides = [o.replace("schedule.stop_step", "loss.stop_step") for o in work.overrides(*STOPPED, *choice)]
    return run_name(overrides, 0).removesuffix("/seed0")
