"""`size=HxW`: images with other rows and columns than those of the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_runs import small_sd, write_run

import urepa
from urepa.core.errors import UserError
from urepa.inference.chosen_size import choose_shape
from urepa.inference.image_request import generate
from urepa.method.ddpm_sampling import sample_images

Compose = Callable[..., dict[str, Any]]
PARTS = [
    "data=folder",
    "data.num_classes=2",
    "data.image_size=16",
    "data.unshuffle=2",
    "backbone.block_out_channels=[32,64]",
    "backbone.attention=[false,true]",
    "backbone.cross_attention_dim=32",
    *("data.images=nowhere", "teacher.image_size=64", "teacher.grid=[2,2]", "tracking=none"),
]
BUCKETS = "data.buckets=[[16,24],[24,16]]"
QUICK = ["n=1", "steps=2", "guidance=2"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def run(outputs: Path, compose: Compose) -> Path:
    return write_run(outputs / "quickstart" / "seed0", compose(*PARTS), 10)


@pytest.fixture(scope="module")
def buckets(outputs: Path, compose: Compose) -> Path:
    return write_run(outputs / "buckets" / "seed0", compose(*PARTS, BUCKETS), 10)


@pytest.mark.slow
def test_images_have_the_size(run: Path, ask: Any) -> None:
    """Equal to the sampler's output for that shape, from noise of that shape."""
    generate(ask(f"run='{run}'", "size=32x24", *QUICK))
    folder = run / "generated" / "step_00000010,ddim2,n=1,guidance=2,seed=0,size=32x24"
    assert json.loads((folder / "request.json").read_text())["size"] == "32x24"
    found = np.stack([np.asarray(Image.open(folder / "images" / f"c000{c}_00000.png")) for c in (0, 1)])
    opened = urepa.load(run, device="cpu")
    how: dict[str, Any] = {"sampler": "ddim", "steps": 2, "guidance": 2.0, "seed": 0}
    x0 = sample_images(
        opened.model.backbone, opened.objective, [(0, 0), (1, 0)], (12, 16, 12), opened.condition([0, 1]), **how
    )
    rgb = torch.nn.functional.pixel_shuffle(x0, 2) / opened.config["data"]["scale"]
    expected = ((rgb + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert found.shape == (2, 32, 24, 3)
    assert np.abs(found - expected).max() <= 1
    with pytest.raises(UserError, match="size: 32x24 there, None here"):
        generate(ask(f"run='{run}'", f"out='{folder}'", *QUICK))
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    (folder / "images" / "c0001_00000.png").unlink()
    generate(ask(f"run='{run}'", "size=32x24", *QUICK))
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    assert {name for name in before if after[name] != before[name]} == {"c0001_00000.png"}


@pytest.mark.slow
def test_the_models_own_size_is_the_same_request(run: Path, buckets: Path, ask: Any) -> None:
    assert ask(f"run='{run}'", "size=16x16") == ask(f"run='{run}'")
    assert ask(f"run='{buckets}'", "size=24x16") == ask(f"run='{buckets}'", "bucket=24x16")
    other = ask(f"run='{buckets}'", "size=32x32")
    assert (other["size"], other["bucket"], other["x0_shape"]) == ("32x32", None, [12, 16, 16])
    with pytest.raises(UserError, match="bucket=24x16 and size=32x32 are two shapes; give one of them"):
        ask(f"run='{buckets}'", "bucket=24x16", "size=32x32")


def test_latents_whose_first_bucket_is_no_square(compose: Compose) -> None:
    """The number of pixels per latent row is that of the first bucket, not of the square in data.latent_shape."""
    config = compose(
        *("data=sd15_captions", "data.images=DIR", "data.num_classes=1", "backbone=sd15_text"),
        "data.buckets=[[448,576],[512,512]]",
    )
    asked = {"size": "512x768", "bucket": None}
    assert choose_shape(asked, config, ["448x576", "512x512"], "the run")["x0_shape"] == [4, 64, 96]


@pytest.mark.fast(2)
@pytest.mark.parametrize("size", ["32", "0x16", "16x", "16x16x3", "ax16", "99999x16", "-16x16"])
def test_invalid_sizes_are_reported(run: Path, ask: Any, size: str) -> None:
    with pytest.raises(UserError, match=f"size={size}: give rows and columns in pixels, as size=512x768"):
        ask(f"run='{run}'", f"size={size}")


@pytest.mark.slow
def test_an_unsupported_size_is_reported_with_a_supported_multiple(
    run: Path, outputs: Path, ask: Any, compose: Compose, small_sit: list[str]
) -> None:
    """The U-Net halves x0 once, and two pixels are one of x0."""
    for size in ("18x16", "16x19"):
        with pytest.raises(UserError, match=f"size={size} does not fit this run: give multiples of 4 pixels"):
            ask(f"run='{run}'", f"size={size}")
    ask(f"run='{run}'", "size=20x16")
    sit = write_run(outputs / "sit" / "seed0", compose(*small_sit), 2)
    learned = write_run(outputs / "learned" / "seed0", compose(*small_sit, "backbone.positions=learned"), 2)
    said = "size=48x32: the backbone of this run supports only the shape that it was trained on; drop it"
    with pytest.raises(UserError, match=said):
        ask(f"run='{learned}'", "size=48x32")
    generate(ask(f"run='{sit}'", "size=48x32", "classes=[0]", "n=1", "steps=1"))
    (image,) = (sit / "generated").glob("*size=48x32*/images/*.png")
    assert Image.open(image).size == (32, 48)


@pytest.mark.slow
def test_latents_of_a_size_are_decoded(outputs: Path, ask: Any, compose: Compose) -> None:
    """With the base weights' images of the same noise beside them."""
    run = write_run(outputs / "track_a" / "seed42", compose(*small_sd(outputs)), 3)
    with pytest.raises(UserError, match="size=70x64 does not fit this run: give multiples of 8 pixels"):
        ask(f"run='{run}'", "size=70x64")
    request = ask(f"run='{run}'", "size=72x96", "classes=[1]", "n=1", "steps=1", "against=base")
    assert request["x0_shape"] == [4, 9, 12]
    generate(request)
    images = sorted((run / "generated").glob("*size=72x96*/*/*.png"))
    assert [image.parent.name for image in images] == ["base", "images"]
    assert {Image.open(image).size for image in images} == {(96, 72)}
