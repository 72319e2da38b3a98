"""A small SDXL, Kolors, SD-1.5, SD3 and PixArt on latents of photographs with captions, in two buckets, with caches
made by `preprocess`; Kolors' captions are encoded during training: a killed run ends like an uninterrupted one, and
two processes train like one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import write_family
from flat_photos import BUCKETS, captioned_latents, listed, write_flat
from photos import WIDTH, write_dinov2, write_sd
from safetensors.torch import load_file
from text_folders import write_kolors, write_sdxl
from transformers_tiny import write_pipeline
from workspace import Workspace, assert_same_checkpoint, assert_same_end, ended, steps, without_timings

STEPS = 10
SIZES = {name: BUCKETS[name] for name in ("64x64", "48x80")}  # standing photographs are cut to squares
LACKING = "the package sentencepiece is not installed, which Kolors' tokenizer needs (pip install sentencepiece)"
ONLINE = "data.online_text=true"


def of_sdxl(place: Path) -> list[str]:
    """Overrides of text encoder, backbone and objective, with their files in `place`."""
    text = write_sdxl(place)
    added = 6 * 8 + text.pooled_width
    write_family(place, "sdxl", cross_attention_dim=text.width, projection_class_embeddings_input_dim=added)
    encoder = ["text_encoder@data.text_encoder=sdxl", f"data.text_encoder.pooled_width={text.pooled_width}"]
    return [*encoder, *_of_text(place, text), "backbone=sdxl", "objective=ddpm_eps_scaled"]


def of_kolors(place: Path) -> list[str]:
    text = write_kolors(place)
    projected = {"encoder_hid_dim": text.width, "projection_class_embeddings_input_dim": 6 * 8 + text.width}
    write_family(place, "kolors", **projected)
    encoder = ["text_encoder@data.text_encoder=kolors", f"data.text_encoder.length={text.length}"]
    encoder += ["data.text_encoder.computed_in=float32", ONLINE]
    return [*encoder, *_of_text(place, text), "backbone=kolors", "objective=ddpm_eps_kolors"]


def of_sd15_text(place: Path) -> list[str]:
    write_sd(place)  # its text encoder
    write_family(place, "sd15", cross_attention_dim=16)
    encoder = [f"data.text_encoder.model={place}", "data.text_encoder.width=16", "data.text_encoder.length=12"]
    return [*encoder, "backbone=sd15_text", "objective=ddpm_eps_scaled"]


def of_sd3(place: Path) -> list[str]:
    """With 16 channels, and blocks that are computed again in the backward pass."""
    own = [*write_pipeline(place, "sd3"), "data.latent_shape=[16,8,8]", *ALIGNED]
    return ["text_encoder@data.text_encoder=sd3", "backbone=sd3", *own, "objective=flow_sd3"]


def of_pixart(place: Path) -> list[str]:
    own = [*write_pipeline(place, "pixart"), *ALIGNED]
    return ["text_encoder@data.text_encoder=t5", "backbone=pixart", *own, "objective=ddpm_eps_pixart"]


def _of_text(place: Path, text: Any) -> list[str]:
    return [f"data.text_encoder.model={place}", f"data.text_encoder.width={text.width}"]


ALIGNED = ("lora=all_attention", "loss=repa_block_8", "~loss.taps.block_8", "+loss.taps.block_1=1.0")
FAMILIES = {"sdxl": of_sdxl, "kolors": of_kolors, "sd15_text": of_sd15_text, "sd3": of_sd3, "pixart": of_pixart}
NEEDS = {"kolors": pytest.mark.skipif(find_spec("sentencepiece") is None, reason=LACKING)}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=NEEDS.get(name, ())) for name in FAMILIES])
def overrides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run on caches that all stages of `preprocess` made."""
    place = tmp_path_factory.mktemp(request.param)
    own = FAMILIES[request.param](place / "family")
    is_data = [o.startswith(("data.", "text_encoder@")) for o in own]
    model = [o for o, there in zip(own, is_data, strict=True) if not there] + [f"backbone.weights={place / 'family'}"]
    model += [] if any(o.startswith("loss") for o in own) else ["lora=mid_attention", "loss=urepa_token"]
    write_sd(place / "sd")  # its VAE
    teacher = [f"teacher.model={write_dinov2(place / 'dino')}", "teacher.image_size=56", "teacher.grid=[4,4]"]
    given = captioned_latents(place, write_flat(place / "photos"), place / "caches")
    data = [o for o in given if ".text_encoder." not in o] + [listed(SIZES)]
    data += [*(o for o, there in zip(own, is_data, strict=True) if there), *teacher, f"teacher.width={WIDTH}"]
    made = ended(["-m", "urepa.preprocess", *data], place)
    assert made.returncode == 0, made.stderr
    assert len(list((place / "caches").glob("text_*"))) == (ONLINE not in own)
    model += ["optimizer=adamw_lora", "head=layer_norm_linear"]
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
