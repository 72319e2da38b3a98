"""A run on photographs with captions: killed, it ends like an uninterrupted one, and it generates images from
prompts."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from captioned import overrides as captioned
from captioned import write_captioned
from photos import write_clip_text
from workspace import Workspace, assert_same_checkpoint, assert_same_end, steps

STEPS = 12


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the run; the folder of the caches is shared."""
    place = tmp_path_factory.mktemp("captioned")
    images, clip = write_captioned(place / "images", 16), write_clip_text(place / "clip", seed=0)
    teacher = ["teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]"]
    trainer = [f"trainer.max_steps={STEPS}", "trainer.log_every=3", "trainer.validate_every=6"]
    trainer += ["trainer.checkpoint_every=4", "data.limit=null"]
    return captioned(images, place / "caches", clip, *teacher, *trainer)


@pytest.fixture(scope="module")
def alone(make_workspace: Callable[[], Workspace], overrides: list[str]) -> Workspace:
    here = make_workspace()
    here.train(*overrides)
    return here


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    work: Workspace, alone: Workspace, overrides: list[str]
) -> None:
    work.train(*overrides, arranged=("--kill", "after_backward:6"), code=-signal.SIGKILL)
    assert steps(work.run)[-1] <= 6
    work.train(*overrides)
    assert_same_end(work.run, alone.run)
    assert_same_checkpoint(work.run, alone.run, 8)


def test_the_run_records_the_captions_of_its_caches(alone: Workspace) -> None:
    """The run's own record contains the identity of its captions, by which runs are compared."""
    summary = (Path(alone.run) / "summary.json").read_text()
    assert '"captions_sha256"' in summary
    assert '"kind": "text"' in summary
