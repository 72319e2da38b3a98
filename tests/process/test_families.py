"""A small SDXL on latents of photographs with captions, in two buckets, with caches made by `preprocess`: a killed run
ends like an uninterrupted one, and two processes train like one."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch
from families import write_family
from flat_photos import BUCKETS, captioned_latents, listed, write_flat
from photos import WIDTH, write_dinov2, write_sd
from safetensors.torch import load_file
from text_folders import write_sdxl
from workspace import Workspace, assert_same_checkpoint, assert_same_end, ended, steps, without_timings

STEPS = 10
SIZES = {name: BUCKETS[name] for name in ("64x64", "48x80")}  # standing photographs are cut to squares


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run on caches that all stages of `preprocess` made."""
    place = tmp_path_factory.mktemp("sdxl")
    text = write_sdxl(place / "sdxl")
    added = 6 * 8 + text.pooled_width
    write_family(place / "sdxl", "sdxl", cross_attention_dim=text.width, projection_class_embeddings_input_dim=added)
    write_sd(place / "sd")  # its VAE
    teacher = [f"teacher.model={write_dinov2(place / 'dino')}", "teacher.image_size=56", "teacher.grid=[4,4]"]
    encoder = ["text_encoder@data.text_encoder=sdxl", f"data.text_encoder.model={place / 'sdxl'}"]
    encoder += [f"data.text_encoder.width={text.width}", f"data.text_encoder.pooled_width={text.pooled_width}"]
    given = captioned_latents(place, write_flat(place / "photos"), place / "caches")
    data = [o for o in given if ".text_encoder." not in o] + [listed(SIZES), *encoder, *teacher]
    data += [f"teacher.width={WIDTH}"]
    made = ended(["-m", "urepa.preprocess", *data], place)
    assert made.returncode == 0, made.stderr
    model = ["backbone=sdxl", f"backbone.weights={place / 'sdxl'}", "objective=ddpm_eps_scaled", "lora=mid_attention"]
    model += ["optimizer=adamw_lora", "loss=urepa_token", "head=layer_norm_linear"]
    trainer = [f"trainer.max_steps={STEPS}", "trainer.batch_size=4", "trainer.validation_group=2"]
    trainer += ["trainer.log_every=1", "trainer.validate_every=5", "trainer.checkpoint_every=3", "trainer.threads=1"]
    return [*data, *model, *trainer, "evaluation=none", "tracking=none"]


@pytest.fixture(scope="module")
def alone(make_workspace: Callable[[], Workspace], overrides: list[str]) -> Workspace:
    here = make_workspace()
    here.train(*overrides, arranged=("--dump", str(here.folder / "dump")), bare=True)
    return here


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    work: Workspace, alone: Workspace, overrides: list[str]
) -> None:
    work.train(*overrides, arranged=("--kill", "after_backward:8"), code=-signal.SIGKILL, bare=True)
    assert steps(work.run)[-1] == 6
    work.train(*overrides, bare=True)
    assert_same_end(work.run, alone.run)
    assert_same_checkpoint(work.run, alone.run, 9)


def test_two_processes_equal_one(work: Workspace, alone: Workspace, overrides: list[str]) -> None:
    validated = [row for row in without_timings(alone.run) if "val/token" in row]
    assert all({f"bucket/{name}/val/token" for name in SIZES} <= row.keys() for row in validated)
    dump = work.folder / "dump"
    work.train(*overrides, arranged=("--dump", str(dump)), ranks=2, bare=True)
    ours, theirs = (load_file(folder / "gradients_0.safetensors") for folder in (dump, alone.folder / "dump"))
    assert ours.keys() == theirs.keys()
    for step in range(STEPS):
        own = sorted(key for key in theirs if key.startswith(f"{step:04d}/"))
        whole = torch.cat([theirs[key].flatten() for key in own]).norm()
        assert whole > 0
        worst = max(float((ours[key] - theirs[key]).norm() / whole) for key in own)
        assert worst < 5e-6, (step, worst)
