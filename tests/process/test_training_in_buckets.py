"""A run on photographs of three shapes: two processes train like one, and a killed run ends like an uninterrupted
one."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from shapes import write_shapes
from workspace import Workspace, assert_same_checkpoint, assert_same_end, steps, without_timings

STEPS = 40
SHAPES = {"square": (80, 80), "lying": (72, 132), "standing": (140, 76)}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for 100 steps of 8 on 72 photographs, without evaluations; the folder of the caches is shared."""
    place = tmp_path_factory.mktemp("bucketed")
    photos = write_shapes(place / "photos", 12, SHAPES)
    data = ["data=folder", f"data.images={photos}", f"data.root={place}/caches", "data.image_size=64"]
    data += ["data.buckets=auto", "data.limit=null", "data.validation_images=10", "data.test_images=8"]
    teacher = ["teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]"]
    trainer = [f"trainer.max_steps={STEPS}", "trainer.validation_group=3", "trainer.log_every=10"]
    trainer += ["trainer.validate_every=20", "trainer.checkpoint_every=15", "tracking=none"]
    return [*data, *teacher, *trainer]


@pytest.fixture(scope="module")
def alone(make_workspace: Callable[[], Workspace], overrides: list[str]) -> Workspace:
    here = make_workspace()
    here.train(*overrides, arranged=("--dump", str(here.folder / "dump")))
    return here


def test_every_bucket_is_validated_separately(alone: Workspace) -> None:
    rows = [row for row in without_timings(alone.run) if "val/diffusion" in row]
    assert [row["step"] for row in rows] == [20, 40]
    for row in rows:
        for name in ("diffusion", "token", "x0_error"):
            by_bucket = {key: value for key, value in row.items() if key.endswith(f"/val/{name}")}
            assert set(by_bucket) == {f"bucket/{bucket}/val/{name}" for bucket in ("64x64", "48x80", "80x48")}
            assert min(by_bucket.values()) <= row[f"val/{name}"] <= max(by_bucket.values())
    assert rows[1]["val/diffusion"] < rows[0]["val/diffusion"]


def test_two_processes_equal_one(work: Workspace, alone: Workspace, overrides: list[str]) -> None:
    dump = work.folder / "dump"
    work.train(*overrides, arranged=("--dump", str(dump)), ranks=2)
    ours, theirs = (load_file(folder / "gradients_0.safetensors") for folder in (dump, alone.folder / "dump"))
    assert ours.keys() == theirs.keys()
    for step in range(STEPS):
        own = sorted(key for key in theirs if key.startswith(f"{step:04d}/"))
        whole = torch.cat([theirs[key].flatten() for key in own]).norm()
        worst = max(float((ours[key] - theirs[key]).norm() / whole) for key in own)
        assert worst < 1e-4, (step, worst)
    other = load_file(dump / "gradients_1.safetensors")
    assert all(torch.equal(ours[key], other[key]) for key in ours), "the ranks' gradients differ"


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    work: Workspace, alone: Workspace, overrides: list[str]
) -> None:
    work.train(*overrides, arranged=("--kill", "after_backward:23"), code=-signal.SIGKILL)
    assert steps(work.run)[-1] == 20, "that of the best validation"
    work.train(*overrides)
    assert_same_end(work.run, alone.run)
    assert_same_checkpoint(work.run, alone.run, 30)
