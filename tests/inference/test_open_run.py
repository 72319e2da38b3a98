"""`urepa.load`: the right weights, features without a class, and mismatches reported in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from class_ids import ids_of, of_ids
from safetensors.torch import load_file
from toy_runs import small_sd, write_run

import urepa
from urepa.core.errors import UserError
from urepa.data.class_conditions import ClassConditions
from urepa.inference.open_run import OpenedRun, open_base
from urepa.models.weight_files import own_memory

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory, compose: Compose, small_run: list[str]) -> Path:
    return write_run(tmp_path_factory.mktemp("outputs") / "quickstart" / "seed0", compose(*small_run), 3)


@pytest.fixture(scope="module")
def opened(digits_run: Path) -> OpenedRun:
    return urepa.load(digits_run, device="cpu")


@pytest.fixture(scope="module")
def images(opened: OpenedRun) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(3, *opened.track.image_shape)


@pytest.fixture(scope="module")
def sd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sd_run")


@pytest.fixture(scope="module")
def sd_run(sd_root: Path, compose: Compose) -> Path:
    return write_run(sd_root / "outputs" / "track_a" / "seed42", compose(*small_sd(sd_root)), 3)


@pytest.mark.slow
def test_importing_urepa_loads_no_heavy_package() -> None:
    heavy = "{'torch', 'diffusers', 'hydra', 'numpy'}"
    code = f"import sys, urepa; assert not {heavy} & set(sys.modules); urepa.load"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'loaf'"):
        _ = urepa.loaf


@pytest.mark.slow
def test_the_weights_are_the_newest_checkpoints_ema(digits_run: Path, opened: OpenedRun) -> None:
    there = load_file(digits_run / "checkpoints" / "step_00000003" / "ema.safetensors")
    here = dict(opened.model.named_parameters())
    assert opened.step == 3
    assert repr(opened) == f"OpenedRun('{digits_run}', step 3, aligned taps: mid)"
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert not opened.model.training
    assert not any(p.requires_grad for p in here.values())
    base = dict(open_base(digits_run, torch.device("cpu")).model.named_parameters())
    assert not any(torch.equal(base[name], there[name]) for name in there)


def test_features_are_the_taps_under_the_null_condition(opened: OpenedRun, images: torch.Tensor) -> None:
    noise = torch.randn(3, *opened.track.latent_shape)
    x_t = opened.objective.corrupt(opened.track.to_x0(images), noise, torch.tensor([100, 100, 100]))
    null = of_ids(torch.full((3,), 10), 10)
    expected = opened.model.backbone(x_t, torch.tensor([100] * 3), null, ("mid",)).features["mid"]
    found = opened.features(images, 100, noise=noise)
    assert torch.equal(found.x_BND, expected.x_BND)
    assert found.grid == expected.grid == (4, 4)
    head = opened.aligned(images, 100, noise=noise)
    assert torch.equal(head.x_BND, opened.model.heads["mid"](expected, torch.tensor([500]), head.grid).x_BND)
    assert head.grid == (2, 2)
    with torch.no_grad():
        rows = opened.model.backbone.embedding_KLE
        before = rows.clone()
        rows[:10] += 1
        assert torch.equal(opened.features(images, 100, noise=noise).x_BND, found.x_BND), "a class leaks"
        rows[10] += 1
        assert not torch.equal(opened.features(images, 100, noise=noise).x_BND, found.x_BND)
        rows.copy_(before)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal up to rounding, which depends on the number of images computed at once."""
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_images_are_made_under_the_condition_of_the_training(
    opened: OpenedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ids_of(opened.condition([1, 3]), 10).tolist() == [1, 3]
    monkeypatch.setattr(opened.track, "conditions", ClassConditions.withheld_with(1.0))  # no sample ever had a class
    assert ids_of(opened.condition([1, 3]), 10).tolist() == [10, 10]


def test_an_images_features_do_not_depend_on_the_other_images(opened: OpenedRun, images: torch.Tensor) -> None:
    together = opened.features(images, 500).x_BND
    for i in range(3):
        assert_same(opened.features(images[i : i + 1], 500).x_BND[0], together[i])
    by_image = opened.features(images, torch.tensor([500, 20, 500])).x_BND
    assert_same(by_image[[0, 2]], together[[0, 2]])
    assert not torch.allclose(by_image[1], together[1], atol=1e-2)


@pytest.mark.slow
def test_whole_numbers_are_valid_times_of_a_flow(tmp_path: Path, compose: Compose, small_sit: list[str]) -> None:
    flow = urepa.load(write_run(tmp_path / "sit" / "seed0", compose(*small_sit), 3), device="cpu")
    images = torch.rand(2, *flow.track.image_shape)
    for t, as_float in ((1, 1.0), (torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))):
        assert torch.equal(flow.features(images, t).x_BND, flow.features(images, as_float).x_BND)
        assert torch.equal(flow.aligned(images, t).x_BND, flow.aligned(images, as_float).x_BND)
    with pytest.raises(UserError, match=r"t=2: give times from 0 to 1"):
        flow.features(images, 2)


@pytest.mark.slow
def test_latents_come_from_the_tracks_vae(sd_run: Path, sd_root: Path) -> None:
    from diffusers import AutoencoderKL

    opened = urepa.load(str(sd_run), device="cpu")
    vae = own_memory(AutoencoderKL.from_pretrained(sd_root / "sd" / "vae"))
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        latents = vae.encode(2 * images - 1).latent_dist.mode() * 0.18215
    assert torch.equal(opened.track.to_x0(images), latents)
    both = [*opened.model.parameters(), *opened.track.autoencoder.parameters()]
    assert all(p.data_ptr() % 64 == 0 for p in both), "rounding would depend on how a process loads a file"
    assert opened.features(images, 999, tap="dec_first").x_BND.shape == (2, 4, 64)
    with torch.no_grad():
        decoded = (torch.cat([vae.decode(x / 0.18215).sample for x in latents.split(1)]) / 2 + 0.5).clamp(0, 1)
    assert torch.equal(opened.track.to_rgb(latents), decoded)


@pytest.mark.slow
def test_a_vae_of_other_constants_than_a_finished_run_records_is_refused(sd_run: Path, tmp_path: Path) -> None:
    """Without its caches: summary.json records their manifest."""
    run = Path(shutil.copytree(sd_run, tmp_path / "sd" / "seed0"))
    images = torch.rand(1, 3, 64, 64)
    facts = {"experiment": "x", "ablation": "", "seed": 0, "step": 3, "metrics": {}, "seconds": {}}
    for latents, said in (
        ({"scaling_factor": 0.18215, "shift_factor": 0.1}, "shift_factor: 0.1 there, 0.0 here"),
        ({"scaling_factor": 0.5}, "scaling_factor: 0.5 there, 0.18215 here"),
        ({"scaling_factor": 0.18215}, None),
        ({"adopted": True}, None),
    ):
        (run / "summary.json").write_text(json.dumps(facts | {"data": {"latents": latents}}))
        opened = urepa.load(run, device="cpu")
        if said is None:
            opened.features(images, 999, tap="dec_first")
            continue
        for use in (lambda: opened.autoencoder, lambda: opened.features(images, 999, tap="dec_first")):  # noqa: B023
            with pytest.raises(UserError, match=f"the latents of {run} were scaled otherwise .*{said}"):
                use()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": torch.rand(2, 3, 16, 16)}, r"images are \[2, 3, 16, 16\]; this run's are \[B,1,16,16\]"),
        ({"images": torch.zeros(2, 1, 16, 16, dtype=torch.uint8)}, "give floats in"),
        ({"images": torch.full((2, 1, 16, 16), 3.0)}, r"in \[3.0, 3.0\]; give floats in \[0, 1\]"),
        ({"t": 1000}, "t=1000: give whole timesteps from 0 to 999"),
        ({"t": 0.5}, "give whole timesteps"),
        ({"tap": "middle"}, "has no tap 'middle'; it has mid, enc_last, dec_first"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, r"noise is \[1, 4, 8, 8\]; give \[2, 4, 8, 8\]"),
    ],
)
def test_unsuitable_inputs_are_reported(opened: OpenedRun, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened.features(**({"images": torch.rand(2, 1, 16, 16)} | change))


@pytest.mark.slow
def test_a_run_that_cannot_be_opened_is_reported(
    sd_run: Path, digits_run: Path, opened: OpenedRun, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is not a run's folder: it has no config.yaml"):
        urepa.load(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="is not the config of a run of urepa"):
        urepa.load(tmp_path)
    shutil.copy(sd_run / "config.yaml", tmp_path)
    with pytest.raises(UserError, match="has no valid checkpoint"):
        urepa.load(tmp_path)
    with pytest.raises(UserError, match="no head on 'enc_last'; it has mid"):
        opened.aligned(torch.rand(1, 1, 16, 16), tap="enc_last")
    with pytest.raises(UserError, match=r"data\.vae has no effect"):
        urepa.load(digits_run, places={"data.vae": "x"})
    with pytest.raises(UserError, match="trainer.threads is not a path"):
        urepa.load(digits_run, places={"trainer.threads": "2"})
    moved = urepa.load(sd_run, device="cpu", places={"data.vae": str(tmp_path)})
    with pytest.raises(UserError, match=r"data\.vae=.* could not be loaded .*give a local diffusers folder"):
        moved.features(torch.rand(1, 3, 64, 64))
    with pytest.raises(UserError, match=f"there are no prompt embeddings at {tmp_path}/clip_embeddings_1001.pt"):
        urepa.load(sd_run, places={"data.root": str(tmp_path)})
