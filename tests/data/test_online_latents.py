"""Latents that are encoded in training: the same values, draws, mirror images and refusals as with a cache."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from earlier import without_digests
from torch import nn

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.costs.estimate import Device, plan
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.data.stages.image_archives import ImageArchive, part_folder, square_archives
from urepa.data.stages.vae import load_vae, vae_without_weights
from urepa.data.stores.disk_sizes import cache_sizes
from urepa.data.stores.lmdb_store import Part
from urepa.data.stores.record_reading import Store
from urepa.method.objectives.flow_math import FlowMath
from urepa.runs import checkpoint

ONLINE = "data.online_latents=true"
BOTH = (ONLINE, "data.online_teacher=true")
FLOW = FlowMath("linear", "uniform")


@pytest.fixture(scope="module")
def with_moments(
    built_with_flips: Path, material: Path, compose: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The photographs' moments in place of latents, in both orientations."""
    from photos import overrides

    from urepa.data.stages.build import Build
    from urepa.training.assembly import build_part

    root = Path(shutil.copytree(built_with_flips, tmp_path_factory.mktemp("moments") / "cache"))
    for folder in root.glob("vae_latents_lmdb*"):
        shutil.rmtree(folder)
    parts = compose(*overrides(material, root), "data.flip=true", "data.moments=true", root="preprocess")
    Build(build_part(parts["data"]), build_part(parts["teacher"]), Part(), batch=8).run("latents")
    return root


def assert_rounded(cached: torch.Tensor, online: torch.Tensor) -> None:
    """Equal up to the rounding of fp16 and a little of fp32."""
    assert ((cached - online).abs() <= 2**-11 * online.abs() + 1e-6).all()
    assert not torch.equal(cached, online)


# --- the cache's numbers -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("moments", [False, True], ids=["mode", "moments"])
def test_steps_equal_those_with_a_cache_up_to_rounding(
    built_with_flips: Path, with_moments: Path, build_of: Any, moments: bool
) -> None:
    """Training and validation: the same samples, flips and posterior draws, latents equal to fp16 rounding, tokens
    equal."""
    root = with_moments if moments else built_with_flips
    read, records = [], []
    for online in ("false", "true"):
        build = build_of(root, "data.flip=true", f"data.moments={moments}", f"data.online_latents={online}")
        cache = build.track.open(build.teacher)
        assert (cache.flips, cache.has_moments, cache.latents.mark.is_file()) == (True, moments, True)
        reader = TrainingReader(cache, FLOW, Layout(16), seed=0)
        batches = [reader.read(step)[0] for step in range(3)]
        if online == "true":
            streamed = [parts[0].x0 for parts in reader.stream(0, 3)]
            assert all(torch.equal(a, b.x0) for a, b in zip(streamed, batches, strict=True))
        read.append([*batches, ValidationReader(cache, FLOW, 16).read(0)])
        records.append(cache.latents.tensor([i for batch in read[-1] for i in batch.ids]).float())
        cache.close()
    assert_rounded(*records)
    assert any(i.endswith("/flip") for i in read[0][0].ids)
    for cached, online_batch in zip(*read, strict=True):
        assert cached.ids == online_batch.ids
        for name in ("noise", "t_B", "teacher_BND"):
            assert torch.equal(getattr(cached, name), getattr(online_batch, name))
        torch.testing.assert_close(cached.x0, online_batch.x0, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_sample_of_the_posterior_is_drawn_by_its_address(with_moments: Path, material: Path, build_of: Any) -> None:
    """mean + std·ε of the mirrored photograph, as diffusers computes them, with ε drawn by (seed, step, position)."""
    build = build_of(with_moments, "data.flip=true", "data.moments=true", *BOTH)
    cache = build.track.open(build.teacher)
    (batch,) = TrainingReader(cache, FLOW, Layout(16), seed=3).read(2)
    vae = load_vae(str(material / "sd"))
    images = ImageArchive(with_moments)([i.removesuffix("/flip") for i in batch.ids])
    mirrored = [i.endswith("/flip") for i in batch.ids]
    assert 2 < sum(mirrored) < 14
    images[mirrored] = images[mirrored].flip(-1)
    with torch.no_grad():
        posterior = vae.encode(images * 2 - 1).latent_dist
    noise = torch.stack(
        [random_draws.normal((4, 8, 8), random_draws.generator(3, "posterior", 2, p)) for p in range(16)]
    )
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(batch.x0, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.teacher_BND, build.teacher.tokens(images).x_BND)
    sample = [replace(s, mirrored=False) for s in cache.splits["val"][:2]]
    assert torch.equal(cache.x0(sample), cache.latents.tensor([s.key for s in sample])[:, 0])  # validation: the mean
    cache.close()


def test_validation_in_bf16_sees_what_training_sees(built: Path, build_of: Any) -> None:
    build = build_of(built, *BOTH)
    cache = build.track.open(build.teacher)
    samples = cache.splits["train"][:3]
    plain = cache.x0(samples), cache.teacher_BND(samples)
    with torch.autocast("cpu", torch.bfloat16):
        inside = cache.x0(samples), cache.teacher_BND(samples)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))
    cache.close()


# --- a run -------------------------------------------------------------------------------------------------


@pytest.fixture
def sit(trainer_of: Callable[..., Any], material: Path, built_with_flips: Path) -> Callable[..., Any]:
    """sit(*overrides): a Trainer of a small SiT on the photographs."""
    small = (
        *("+experiment=repa_cifar10", "tracking=none", "data.source=folder", f"data.images={material / 'photos'}"),
        *(f"data.root={built_with_flips}", "data.train=train_200k.csv", "data.val=val_50k.csv", "data.moments=false"),
        *("data.image_size=64", f"data.vae={material / 'sd'}", "data.latent_shape=[4,8,8]", "data.num_classes=2"),
        *(f"teacher.model={material / 'dino'}", "teacher.image_size=56", "teacher.grid=[4,4]", "teacher.width=32"),
        *("backbone.depth=4", "backbone.width=32", "backbone.heads=2", "head.hidden=16", "loss=repa_tiny"),
        *("trainer.precision=fp32", "trainer.batch_size=16", "trainer.validation_group=16", "trainer.max_steps=8"),
    )
    return lambda *more: trainer_of(*small, *more)


def steps(trainer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in trainer.model.named_parameters()}


@pytest.mark.slow
def test_a_run_without_a_cache_resumes_bit_for_bit_and_is_the_cached_one(sit: Callable[..., Any]) -> None:
    trainer = sit(*BOTH)
    row = trainer.validate(0)
    steps(trainer, 0, 2)
    trainer.save(2)
    steps(trainer, 2, 4)
    whole = weights(trainer)
    found = checkpoint.newest(trainer.folder / "checkpoints")
    trainer = sit(*BOTH)
    assert trainer.restore(found, None) == 2
    steps(trainer, 2, 4)
    assert all(torch.equal(v, whole[k]) for k, v in weights(trainer).items())
    assert trainer.reader.cache.fingerprint()["latents"] == {
        "kind": "online",
        "vae": "sd",
        "scaling_factor": 0.18215,
        "moments": False,
        "image_size": 64,
        "crop": "center",
        "shape": [4, 8, 8],
    }
    cached = sit()
    assert cached.validate(0)["val/diffusion"] == pytest.approx(row["val/diffusion"], rel=1e-4)
    steps(cached, 0, 4)
    for name, value in weights(cached).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=2e-4)


# --- what is there and what is not -------------------------------------------------------------------------


@pytest.mark.slow
def test_outputs_of_online_encoders_are_not_cached(
    build_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = build_of(tmp_path / "cache", *BOTH, "data.flip=true", "data.text=null")
    build.run("all")
    assert {p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()} == {"images"}
    said = capsys.readouterr().out
    assert "the images of 80 samples are whole" in said
    assert "the images of 64 mirrored samples are whole" in said
    for stage, key in (("latents", "online_latents"), ("tokens", "online_teacher")):
        with pytest.raises(
            UserError, match=f"data.{key}=true computes {stage} during training: leave out the stage or"
        ):
            build.run(stage)
    with pytest.raises(UserError, match="stage=adopt is for caches: leave data.online_latents"):
        build.run("adopt")
    assert cache_sizes(build.track, build.teacher) == []


@pytest.mark.slow
def test_parts_of_squares_alone_leave_verifying_to_the_last(
    build_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        build_of(tmp_path / "cache", *BOTH, "data.text=null", part=Part(i, 2)).run("all")
        said = capsys.readouterr().out
        assert ("other parts are not finished yet" in said) is (i == 0)
        assert ("the images of 80 samples are whole" in said) is (i == 1)


@pytest.mark.slow
def test_the_field_of_view_is_verified_without_a_cache_of_latents(
    built_with_flips: Path, build_of: Any, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(built_with_flips, tmp_path / "cache", ignore=shutil.ignore_patterns("vae_latents*")))
    build_of(root, "data.flip=true", ONLINE).run("verify")
    shutil.copy(root / "dino_tokens_lmdb" / "data.mdb", root / "dino_tokens_lmdb_flip" / "data.mdb")
    without_digests(root / "dino_tokens_lmdb_flip")
    with pytest.raises(UserError, match=r"do not see the same field of view.*mirrored"):
        build_of(root, "data.flip=true", ONLINE).run("verify")


@pytest.mark.slow
def test_other_images_are_refused(built: Path, build_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # a hub that is away is asked for 40 s
    root = Path(shutil.copytree(built, tmp_path / "cache", ignore=shutil.ignore_patterns("*_lmdb")))
    build = build_of(root, *BOTH)
    cache = build.track.open(build.teacher)
    other = cache.splits["train"][7]  # the first one is looked at on opening
    with pytest.raises(UserError, match=r"images was made differently .image_size: 64 there, 32 here"):
        build_of(root, *BOTH, "data.image_size=32").track.open(None)
    with pytest.raises(
        UserError, match=r"makes latents of shape \[4, 8, 8\] from these images; data.latent_shape=\[4, 4, 4\]"
    ):
        build_of(root, *BOTH, "data.latent_shape=[4,4,4]").track.open(None)
    with pytest.raises(UserError, match=r"data.vae=nowhere/at-all could not be loaded"):
        build_of(root, *BOTH, "data.vae=nowhere/at-all").track.open(None)
    chunk, *_ = sorted(root.glob("images/part-*/*.zip"))
    content = bytearray(chunk.read_bytes())
    with zipfile.ZipFile(chunk) as archive:
        place = archive.getinfo(f"{other.sample_id}.jpg")
    content[place.header_offset + 30 + len(place.filename) + place.file_size // 2] ^= 1  # most of it can be decoded
    chunk.write_bytes(content)
    words = f"{chunk}: the image of {other.sample_id} cannot be read .it has changed since it was written"
    with pytest.raises(UserError, match=words):
        cache.x0([other])
    with pytest.raises(UserError, match=words):
        build.run("verify")
    chunk.unlink()
    with pytest.raises(UserError, match=r"images (lacks \d+ of 80 images|is empty)"):
        build.track.open(None)
    shutil.rmtree(root / "images")
    with pytest.raises(
        UserError, match=r"no images at .*; make it with .*online_teacher=true data.online_latents=true"
    ):
        build.track.open(None)


def test_an_image_is_read_past_its_files_list_of_contents(built: Path) -> None:
    import io

    import numpy as np
    from PIL import Image

    archive, places = ImageArchive(built), square_archives(part_folder(built, Part()))
    ids = list(places)[::7]
    pixels = archive.pixels(ids)
    for i, path in enumerate(places[name] for name in ids):
        with zipfile.ZipFile(path) as file, Image.open(io.BytesIO(file.read(f"{ids[i]}.jpg"))) as image:
            assert np.array_equal(pixels[i].permute(1, 2, 0), np.asarray(image))
    assert torch.equal(archive(ids), pixels.float() / 255)


# --- its cost ----------------------------------------------------------------------------------------------


def products(vae: nn.Module, size: int) -> int:
    """FLOPs of encoding one image: two per weight of a convolution or projection at each position, and the attention in
    the middle."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        places = output.numel() // output.shape[1] if isinstance(module, nn.Conv2d) else output[..., 0].numel()
        total += 2 * places * module.weight.numel()  # type: ignore[operator,union-attr]

    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        latent = vae.encode(torch.zeros(1, 3, size, size, device=vae.device)).latent_dist.mean  # type: ignore[operator]
    tokens, width = latent.shape[-1] ** 2, vae.config.block_out_channels[-1]  # type: ignore[union-attr,index]
    return total + 4 * tokens**2 * width


@pytest.mark.slow
def test_the_vae_is_part_of_the_step(compose: Callable[..., dict[str, Any]], material: Path) -> None:
    numbers = ("data.train_images=100", "data.val_images=10", "trainer.batch_size=4", "backbone.depth=8")
    config = compose("+experiment=repa_cifar10", ONLINE, *numbers)
    cached, planned = (
        plan(c, Device("x", "cuda", 1e15, 141e9)) for c in (compose("+experiment=repa_cifar10", *numbers), config)
    )
    with torch.device("meta"):
        flops = products(vae_without_weights("stabilityai/sd-vae-ft-mse", 4), 256)
    assert planned.flops("forward")["VAE"] == 4 * flops
    assert planned.flops_per_step == cached.flops_per_step + 4 * flops
    assert planned.validation_flops - cached.validation_flops == 10 * flops * (cached.validation_flops // 10 > 0) * (
        planned.settings.max_steps // planned.settings.validate_every
    )
    assert planned.counted.parameters["VAE"] == {"all": 83_653_863, "trainable": 0}
    assert planned.counted.weights["VAE"] == 2 * 83_653_863  # bf16
    assert planned.peak_bytes > cached.peak_bytes + 2 * 83_653_863
    assert [c.name for c in planned.counted.caches] == ["tokens", "tokens_flip"]
    assert (cached.counted.squares, planned.counted.squares) == (0, 110)
    own = compose("+experiment=repa_cifar10", ONLINE, *numbers, f"data.vae={material / 'sd'}")
    small = plan(own, Device("cpu", "cpu", None, None))
    assert small.flops("forward")["VAE"] == 4 * products(load_vae(str(material / "sd")), 256)


def test_latents_that_are_cached_are_read_from_an_ordinary_store(built: Path, build_of: Any) -> None:
    cache = build_of(built).track.open(None)
    assert isinstance(cache.latents, Store)
    assert json.loads(cache.latents.mark.read_text()) == cache.latents.manifest
    cache.close()
