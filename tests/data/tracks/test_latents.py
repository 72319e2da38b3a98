"""A track for backbones conditioned on class ids: CIFAR-10 at 256 px as in the description of SiT with REPA, here with
a few photographs and a small random VAE."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from photos import TRAIN, VAL, WIDTH

from urepa.core.errors import UserError
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part
from urepa.runs.trackers.no_tracking import NoShipper
from urepa.training import trainer_assembly
from urepa.training.assembly import build_part


@pytest.fixture
def overrides(material: Path, tmp_path: Path) -> list[str]:
    return [
        f"data.root={tmp_path / 'track'}",
        "data.source=folder",
        f"data.images={material / 'photos'}",
        f"data.vae={material / 'sd' / 'vae'}",
        "data.image_size=64",
        "data.latent_shape=[4,8,8]",
        "data.num_classes=2",
        f"teacher.model={material / 'dino'}",
        "teacher.image_size=56",
        "teacher.grid=[4,4]",
        f"teacher.width={WIDTH}",
    ]


@pytest.mark.slow
def test_cifar10_256_needs_no_prompts_and_trains_on_both_flips(
    compose: Callable[..., dict[str, Any]], overrides: list[str], tmp_path: Path
) -> None:
    parts = compose("data=cifar10_256", *overrides, root="preprocess")
    track = build_part(parts["data"])
    assert track.prompt_bytes == 0
    build = Build(track, build_part(parts["teacher"]), Part(), batch=8)
    build.run("all")
    made = {path.name for path in (tmp_path / "track").iterdir()}
    stores = {f"{name}_lmdb{flip}" for name in ("vae_latents", "dino_tokens") for flip in ("", "_flip")}
    assert made >= stores | {"train.csv", "val.csv", "images"}
    assert not any("clip" in name for name in made)
    with pytest.raises(UserError, match="data=cifar10_256 has no prompts"):
        build.run("prompts")
    shutil.rmtree(tmp_path / "track" / "images")  # training needs the stores alone
    small = ["backbone.depth=8", "backbone.width=32", "backbone.heads=2", "head.hidden=16", "trainer.precision=fp32"]
    config = compose("+experiment=repa_cifar10", *overrides, *small, "trainer.validation_group=8", "tracking=none")
    shipper = NoShipper()
    trainer, _ = trainer_assembly.build(config, tmp_path, Accelerator(cpu=True), shipper)
    batches = trainer.reader.read(0)
    assert (len(batches[0].ids), TRAIN, VAL) == (
        32,
        len(trainer.reader.cache.splits["train"]),
        len(trainer.validation.reader.cache.splits["val"]),
    )
    assert 0 < sum(name.endswith("/flip") for name in batches[0].ids) < 32
    assert trainer.reader.cache.has_moments
    trainer.update(0, batches, with_tap_gradients=False)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-4, 1e-4]
    assert torch.isfinite(trainer.update(1, trainer.reader.read(1), with_tap_gradients=False).terms.total)
    trainer.reader.cache.close()
