"""A run whose images have several shapes: images, features and exports of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from class_ids import of_ids
from PIL import Image
from published import files
from toy_runs import write_run

import urepa
from urepa.core.errors import UserError
from urepa.evaluation.buckets import run_in_buckets
from urepa.inference.export_weights import export
from urepa.inference.image_request import generate
from urepa.inference.open_run import OpenedRun
from urepa.method.ddpm_sampling import sample_images
from urepa.runs.run_folder import require_config
from urepa.training import provenance
from urepa.training.run_lifecycle import Session

Compose = Callable[..., dict[str, Any]]
SHAPES = {"16x16": (3, 16, 16), "16x24": (3, 16, 24), "24x16": (3, 24, 16)}
PARTS = [  # what its weights depend on
    "data=folder",
    "data.num_classes=2",
    "data.image_size=16",
    "data.unshuffle=2",
    "data.buckets=[[16,16],[16,24],[24,16]]",
    "backbone.block_out_channels=[32,64]",
    "backbone.attention=[false,true]",
    "backbone.cross_attention_dim=32",
]
SMALL = [*PARTS, "data.images=nowhere", "teacher.image_size=64", "teacher.grid=[2,2]", "tracking=none"]
QUICK = ["n=1", "steps=2", "guidance=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    """A run with three buckets, without data."""
    return write_run(tmp_path_factory.mktemp("outputs") / "quickstart" / "seed0", compose(*SMALL), 10)


@pytest.fixture(scope="module")
def opened(run: Path) -> OpenedRun:
    return urepa.load(run, device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> Path:
    """The same run without buckets."""
    overrides = [one for one in SMALL if not one.startswith("data.buckets")]
    return write_run(tmp_path_factory.mktemp("outputs") / "plain" / "seed0", compose(*overrides), 10)


def record_buckets(run: Path, *names: str) -> Path:
    """Records which buckets have images, as training does."""
    data = provenance.data_facts({"buckets": {name: {"train": 8} for name in names}}, {})
    file = run / "provenance.json"
    file.write_text(json.dumps({"data": data}))
    return file


@pytest.mark.slow
def test_the_bucket_of_a_request(run: Path, plain: Path, ask: Any) -> None:
    assert ask(f"run='{run}'")["bucket"] == "16x16"
    assert ask(f"run='{run}'", "bucket=24x16")["bucket"] == "24x16"
    with pytest.raises(UserError, match="bucket=64x64: this run has no such bucket; give one of 16x16, 16x24, 24x16$"):
        ask(f"run='{run}'", "bucket=64x64")
    assert ask(f"run='{plain}'")["bucket"] is None
    with pytest.raises(UserError, match="bucket=16x16 has no effect: the images of this run have one shape; drop it"):
        ask(f"run='{plain}'", "bucket=16x16")


@pytest.mark.slow
def test_a_bucket_without_images_does_not_belong_to_the_run(run: Path, ask: Any) -> None:
    file = record_buckets(run, "24x16", "16x24")
    try:
        assert ask(f"run='{run}'")["bucket"] == "16x24"
        with pytest.raises(UserError, match="no such bucket; give one of 16x24, 24x16$"):
            ask(f"run='{run}'", "bucket=16x16")
        with pytest.raises(UserError, match=r"this run's are \[B,3,16,24\] or \[B,3,24,16\]: resize them first"):
            urepa.load(run, device="cpu").features(torch.rand(1, 3, 16, 16))
    finally:
        file.unlink()


@pytest.mark.slow
def test_auto_is_stored_and_read_again(tmp_path: Path, compose: Compose) -> None:
    run = write_run(tmp_path / "auto" / "seed0", compose(*SMALL[:4], *SMALL[5:], "data.buckets=auto"), 1)
    assert require_config(run)["data"]["buckets"] == "auto"
    assert urepa.load(run, device="cpu").buckets == ["16x16", "12x20", "20x12"]
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  buckets: auto", "  buckets: [{_target_: os.system}]"))
    with pytest.raises(UserError, match=r"data\.buckets is an instruction to Hydra"):
        require_config(run)


@pytest.mark.slow
def test_images_have_the_shape_of_the_bucket(run: Path, plain: Path, ask: Any, opened: OpenedRun) -> None:
    """Equal to the sampler's output for that shape."""
    generate(ask(f"run='{run}'", "bucket=16x24", *QUICK))
    folder = run / "generated" / "step_00000010,ddim2,n=1,guidance=2,seed=0,bucket=16x24"
    assert json.loads((folder / "request.json").read_text())["bucket"] == "16x24"
    found = np.stack([np.asarray(Image.open(folder / "images" / f"c000{c}_00000.png")) for c in (0, 1)])
    how: dict[str, Any] = {"sampler": "ddim", "steps": 2, "guidance": 2.0, "seed": 0}
    x0 = sample_images(
        opened.model.backbone, opened.objective, [(0, 0), (1, 0)], (12, 8, 12), opened.condition([0, 1]), **how
    )
    rgb = torch.nn.functional.pixel_shuffle(x0, 2) / opened.config["data"]["scale"]
    expected = ((rgb + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert found.shape == (2, 16, 24, 3)
    assert np.abs(found - expected).max() <= 1
    with pytest.raises(UserError, match="bucket: 16x24 there, 16x16 here"):
        generate(ask(f"run='{run}'", f"out='{folder}'", *QUICK))
    generate(ask(f"run='{plain}'", *QUICK))
    (without,) = (plain / "generated").iterdir()
    assert without.name == "step_00000010,ddim2,n=1,guidance=2,seed=0"
    assert "bucket" not in json.loads((without / "request.json").read_text())


@pytest.mark.slow
def test_an_export_makes_the_same_images_in_each_bucket(run: Path, ask: Any, compose: Compose, tmp_path: Path) -> None:
    file = record_buckets(run, "16x16", "24x16")
    try:
        folder = export(compose(f"run='{run}'", f"out={tmp_path / 'export'}", root="export"))
    finally:
        file.unlink()
    card = (folder / "README.md").read_text()
    assert "- `bucket=16x16`: x0 of 12×8×8\n- `bucket=24x16`: x0 of 12×12×8\n\n" in card
    for bucket in ("16x16", "24x16"):
        generate(ask(f"run='{run}'", f"bucket={bucket}", *QUICK, f"out={tmp_path / bucket}"))
        out = tmp_path / f"published_{bucket}"
        generate(ask(f"checkpoint='{folder}'", *PARTS, f"bucket={bucket}", *QUICK, f"out={out}"))
        assert files(out) == files(tmp_path / bucket)
        assert len(files(out)) == 2
        assert json.loads((out / "request.json").read_text())["bucket"] == bucket
    with pytest.raises(UserError, match="bucket=8x8: this experiment has no such bucket"):
        ask(f"checkpoint='{folder}'", *PARTS, "bucket=8x8")
    squares = [one for one in PARTS if not one.startswith("data.buckets")]
    generate(ask(f"checkpoint='{folder}'", *squares, *QUICK, f"out={tmp_path / 'squares'}"))
    assert files(tmp_path / "squares") == files(tmp_path / "16x16")
    assert not [k for k in json.loads((tmp_path / "squares" / "request.json").read_text()) if "bucket" in k]


@pytest.mark.parametrize(("bucket", "grid"), [("16x16", (2, 2)), ("16x24", (2, 3)), ("24x16", (3, 2))])
def test_features_of_images_of_each_shape(opened: OpenedRun, bucket: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, *SHAPES[bucket])
    noise = torch.randn(2, 12, images.shape[2] // 2, images.shape[3] // 2)
    x0 = torch.nn.functional.pixel_unshuffle(images * 2 - 1, 2) * opened.config["data"]["scale"]
    t_B = torch.tensor([100, 100])
    x_t = opened.objective.corrupt(x0, noise, t_B)
    expected = opened.model.backbone(x_t, t_B, of_ids(torch.tensor([2, 2]), 2), ("mid",)).features["mid"]
    found = opened.features(images, 100, noise=noise)
    assert torch.allclose(found.x_BND, expected.x_BND, atol=1e-6)
    assert found.grid == expected.grid == (images.shape[2] // 4, images.shape[3] // 4)
    head = opened.aligned(images, 100, noise=noise)
    assert head.grid == grid
    assert head.x_BND.shape[1] == grid[0] * grid[1]
    assert torch.allclose(head.x_BND, opened.model.heads["mid"](expected, t_B, grid).x_BND, atol=1e-6)
    both = opened.features(images).x_BND  # the same fixed noise for every image
    assert torch.allclose(opened.features(images[1:]).x_BND, both[1:], atol=1e-5)


def test_images_of_no_buckets_shape_are_refused(opened: OpenedRun) -> None:
    said = r"images are \[1, 3, 24, 24\]; this run's are \[B,3,16,16\] or \[B,3,16,24\] or \[B,3,24,16\]: resize"
    with pytest.raises(UserError, match=said):
        opened.features(torch.rand(1, 3, 24, 24))
    with pytest.raises(UserError, match=r"noise is \[1, 12, 8, 8\]; give \[1, 12, 8, 12\]"):
        opened.features(torch.rand(1, 3, 16, 24), noise=torch.zeros(1, 12, 8, 8))


def test_evaluations_find_the_folder_of_a_single_bucket(tmp_path: Path) -> None:
    """Also if data.buckets=auto found images of only one shape."""
    context: Any = SimpleNamespace(cache=SimpleNamespace(bucket="16x24"), folder=tmp_path / "buckets" / "16x24")

    def evaluate(here: Any) -> dict[str, float]:
        (here.folder / "samples").mkdir()
        return {"final/x": 1.0}

    found = run_in_buckets([context], {"samples": {}}, lambda settings: evaluate)
    assert (found.metrics, found.failures) == ({"final/x": 1.0}, {})


def test_pictures_of_buckets_go_to_mlflow_and_generated_images_do_not(tmp_path: Path) -> None:
    kept = ["losses.png", "samples/a.png", "buckets/16x24/plot.png", "buckets/16x24/samples/a.png"]
    for name in (*kept, "generated/x/images/a.png", "buckets/16x24/generated/x/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    session: Any = SimpleNamespace(folder=SimpleNamespace(path=tmp_path, config_file=tmp_path / "config.yaml"))
    assert Session._artifacts(session) == [tmp_path / "config.yaml", *sorted(tmp_path / name for name in kept)]
