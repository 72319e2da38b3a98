"""Runs of SDXL and SD-1.5 with captions: a few steps of the trainer, their export, and the counts of a plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned import overrides, write_captioned
from families import ARCHITECTURES, added_to
from photos import write_clip_text
from toy_runs import write_run

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import POOLED
from urepa.costs.counting import Flops
from urepa.costs.estimate import count
from urepa.inference.export_weights import export
from urepa.models.unet_families import FAMILIES
from urepa.runs.trackers.no_tracking import NoShipper
from urepa.training.assembly import build_loss, build_model, build_part
from urepa.training.checks.sizes import check_shapes
from urepa.training.trainer_assembly import build

WIDTH = 16  # of the small CLIP, in tokens and vector
CHANNELS, SIDE = 48, 16  # of x0
OF_CLIP = {"cross_attention_dim": WIDTH, "in_channels": CHANNELS, "out_channels": CHANNELS, "sample_size": SIDE}
TRAINED = ("lora=mid_attention", "lora.rank=2", "optimizer=adamw_lora", "objective=ddpm_eps_scaled")
ALIGNED = ("head=irepa", "teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]")


def architecture(family: str) -> dict[str, Any]:
    """The small architecture, for text of the small CLIP and the track's x0."""
    added = {} if family == "sd15" else {"projection_class_embeddings_input_dim": 6 * 8 + WIDTH}
    return ARCHITECTURES[family] | OF_CLIP | added


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a small CLIP and a U-Net of each family."""
    from diffusers import UNet2DConditionModel

    root = tmp_path_factory.mktemp("family_runs")
    write_captioned(root / "images")
    write_clip_text(root / "clip", seed=0)
    for family in ("sd15", "sdxl"):
        torch.manual_seed(0)
        UNet2DConditionModel(**architecture(family)).save_pretrained(root / family / "unet")
    return root


def of_run(place: Path, root: Path, backbone: str, family: str, *more: str) -> list[str]:
    given = overrides(place / "images", root, place / "clip", "data.num_classes=2", "trainer.max_steps=3")
    data = [o for o in given if not o.startswith("backbone")]
    return [*data, f"backbone={backbone}", f"backbone.weights={place / family}", *TRAINED, *ALIGNED, *more]


@pytest.fixture
def no_accelerator_left() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "family"), [("sdxl", "sdxl"), ("sd15_text", "sd15")])
@pytest.mark.usefixtures("no_accelerator_left")
def test_a_run_trains_its_adapters(
    compose: Callable[..., Any], place: Path, tmp_path: Path, backbone: str, family: str
) -> None:
    """The weights, which were read in bf16, stay unchanged."""
    from accelerate import Accelerator

    bf16 = ("trainer.precision=bf16", "trainer.frozen=bf16")
    config = compose(*of_run(place, tmp_path / "data", backbone, family, *bf16))
    trainer, _ = build(config, tmp_path, Accelerator(cpu=True, mixed_precision="bf16"), NoShipper())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit(0)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {before[name].dtype for name in before.keys() - moved} == {torch.float32, torch.bfloat16}
    trainer.reader.cache.close()
    row = [json.loads(line) for line in trainer.metrics.path.read_text().splitlines()][-1]
    assert np.isfinite([row["val/diffusion"], row["val/token"]]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "family"), [("sdxl", "sdxl"), ("sd15_text", "sd15")])
def test_text_of_another_width_is_refused_before_caches_are_looked_for(
    compose: Callable[..., Any], place: Path, tmp_path: Path, backbone: str, family: str
) -> None:
    """By the config.json of a folder, or the published one; weights of another family by their own message."""
    given = of_run(place, tmp_path / "data", backbone, family)
    check_shapes(compose(*given))
    wide = "data.text_encoder.width=24"
    with pytest.raises(UserError, match=rf"{family} takes text of width {WIDTH}; data\.text_encoder gives 24: choose"):
        check_shapes(compose(*given, wide))
    with pytest.raises(UserError, match=r"of random takes text of width (768|2048); data\.text_encoder gives 24"):
        check_shapes(compose(*given, wide, "backbone.weights=random"))
    check_shapes(compose(*given, wide, "backbone.weights=owner/name"))  # known when it is fetched
    other = {"sdxl": "sd15", "sd15": "sdxl"}[family]
    with pytest.raises(UserError, match="is a U-Net with"):
        check_shapes(compose(*given, f"backbone.weights={place / other}"))
    assert not (tmp_path / "data").exists()


def test_adapters_behind_the_tap_are_counted_in_the_warning(
    compose: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    """As numbers of parameters: those of the middle block come after the last down block."""
    config = compose(*of_run(place, tmp_path / "data", "sdxl", "sdxl"))
    config["loss"]["taps"] = {"enc_last": 1.0}
    track, loss = build_part(config["data"]), build_loss(config)
    with pytest.warns(UserWarning, match="nothing trainable precedes the tap 'enc_last'") as caught:
        model, _ = build_model(config, track, build_part(config["teacher"]), loss)
    adapters = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    assert adapters > 1000
    assert f"reaches 0 of the backbone's {adapters:,} trainable parameters" in str(caught[0].message)


@pytest.mark.slow
def test_an_export_says_its_pipeline(compose: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    config = compose(*of_run(place, tmp_path / "data", "sdxl", "sdxl", "lora.use_dora=true"))
    folder = export(compose(f"run='{write_run(tmp_path / 'run', config, 3)}'", root="export"))
    assert {p.name for p in folder.iterdir()} >= {"pytorch_lora_weights.safetensors", "scheduler", "README.md"}
    card = (folder / "README.md").read_text()
    assert "pipe = StableDiffusionXLPipeline.from_pretrained(" in card
    assert f"height={8 * SIDE}, width={8 * SIDE}" in card
    assert "DoRA of rank 2 (attention, blocks: mid) was trained" in card


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "family"), [("sdxl", "sdxl"), ("kolors", "kolors"), ("sd15_text", "sd15")])
def test_a_plan_counts_diffusers_own_forward_pass(
    compose: Callable[..., Any],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    family: str,
) -> None:
    """Without weights, for text with the encoder's length and widths."""
    from diffusers import UNet2DConditionModel

    own = architecture(family) | ({"encoder_hid_dim": WIDTH} if family == "kolors" else {})
    monkeypatch.setitem(FAMILIES, family, replace(FAMILIES[family], architecture=own))
    config = compose(*of_run(place, tmp_path / "data", backbone, family, "backbone.weights=random"))
    counted = count(config, "cpu")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**own)
        condition = Condition({POOLED: Part.of(torch.empty(1, WIDTH))})
        x_t, text = torch.empty(1, CHANNELS, SIDE, SIDE), torch.empty(1, 12, WIDTH)
        added = added_to(family, condition, [0] * 6)
        mask = torch.ones(1, 12)
        with Flops() as flops, torch.no_grad():
            unet(x_t, torch.zeros(1), text, encoder_attention_mask=mask, **added)
    parts = ("down", "mid", "up")
    adapters = sum(counted.parameters[part]["trainable"] for part in parts)
    assert sum(counted.parameters[part]["all"] for part in parts) - adapters == sum(
        p.numel() for p in unet.parameters()
    )
    batch = config["trainer"]["batch_size"]
    forward = sum(counted.step.forward[part] for part in parts) / batch
    assert forward == pytest.approx(flops.total, rel=0.01)
    assert counted.step.backward["mid"] > 0
    assert counted.step.backward.get("down", 0) == 0
    assert counted.taps["mid"] == (SIDE // 4, SIDE // 4, 32)
