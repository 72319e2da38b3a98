"""A teacher that gets the decoded latents as images, cached and online, compared with diffusers' decoding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.costs.estimate import Device, plan
from urepa.data.lists.samples import Sample
from urepa.training.checks.combinations import check

DECODED = "data.teacher_sees=decoded"
ONLINE = "data.online_teacher=true"


@pytest.fixture(scope="module")
def tae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Tiny AutoEncoder with its own constants, in diffusers' layout."""
    return write_tae(tmp_path_factory.mktemp("tae") / "tiny", 4)


def write_tae(folder: Path, latent_channels: int) -> Path:
    torch.manual_seed(0)
    widths: dict[str, Any] = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8, 8))
    made = AutoencoderTiny(**widths, latent_channels=latent_channels, scaling_factor=2.0, shift_factor=0.25)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoded(built_with_flips: Path, material: Path, compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs' caches with flips and with tokens of decoded images."""
    from photos import overrides

    from urepa.data.stages.build import Build
    from urepa.data.stores.lmdb_store import Part
    from urepa.training.assembly import build_part

    root = Path(shutil.copytree(built_with_flips, tmp_path_factory.mktemp("decoded") / "cache"))
    for folder in root.glob("dino_tokens_lmdb*"):
        shutil.rmtree(folder)
    parts = compose(*overrides(material, root), "data.flip=true", DECODED, root="preprocess")
    Build(build_part(parts["data"]), build_part(parts["teacher"]), Part(), batch=8).run("tokens")
    return root


def some(cache: Any) -> list[Sample]:
    """Training samples, half of them mirrored, and a validation sample."""
    from dataclasses import replace

    train = [cache.splits["train"][i] for i in range(0, 20, 3)]
    return [*train, *(replace(s, mirrored=True) for s in train), cache.splits["val"][0]]


def seen_through_the_vae(material: Path, x0: Tensor) -> Tensor:
    vae = AutoencoderKL.from_pretrained(material / "sd" / "vae")
    with torch.no_grad():
        return (vae.decode(x0.float() / 0.18215).sample / 2 + 0.5).clamp(0, 1)


# --- tokens -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cached_tokens_are_the_teachers_of_the_decoded_latents(decoded: Path, build_of: Any, material: Path) -> None:
    """Also for mirror images, whose own latents are decoded; differences are those of fp16."""
    build = build_of(decoded, "data.flip=true", DECODED)
    cache = build.track.open(build.teacher)
    samples = some(cache)
    images = seen_through_the_vae(material, cache.x0(samples))
    expected = build.teacher.tokens(images).x_BND
    torch.testing.assert_close(cache.teacher_BND(samples).float(), expected, rtol=2e-3, atol=1e-3)
    plain = build_of(decoded, "data.flip=true").teacher.tokens(images.flip(-1)).x_BND
    assert not torch.allclose(plain, expected, rtol=2e-3, atol=1e-3)
    cache.close()


@pytest.mark.slow
def test_online_tokens_need_latents_alone(decoded: Path, build_of: Any, material: Path, tmp_path: Path) -> None:
    """Neither images nor a token cache are needed. The tokens equal the cached ones before rounding to fp16."""
    root = Path(shutil.copytree(decoded, tmp_path / "cache", ignore=shutil.ignore_patterns("images", "dino_*")))
    build = build_of(root, "data.flip=true", DECODED, ONLINE)
    assert not build.track.reads_squares(build.teacher)
    cache = build.track.open(build.teacher)
    samples = some(cache)
    found = cache.teacher_BND(samples)
    expected = build.teacher.tokens(seen_through_the_vae(material, cache.x0(samples))).x_BND
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # validation asks inside it
        assert torch.equal(cache.teacher_BND(samples), found)
    assert not found.is_inference(), "the loss saves them for its backward pass"
    cache.close()
    stored = build_of(decoded, "data.flip=true", DECODED)
    cached = stored.track.open(stored.teacher)
    torch.testing.assert_close(cached.teacher_BND(samples).float(), found, rtol=2e-3, atol=1e-3)
    cached.close()


@pytest.mark.slow
def test_a_tiny_autoencoder_takes_x0_by_its_own_constants(
    built_with_flips: Path, build_of: Any, tae: Path, tmp_path: Path
) -> None:
    keys = ("data.flip=true", "data.teacher_sees=tae_decoded", f"data.tae={tae}")
    build = build_of(built_with_flips, *keys, ONLINE)
    cache = build.track.open(build.teacher)
    samples, network = some(cache), AutoencoderTiny.from_pretrained(tae)
    with torch.no_grad():
        sample = network.decode(cache.x0(samples) / 2.0 + 0.25).sample
    assert sample.min() < 0, "it is in [-1, 1]"
    expected = build.teacher.tokens((sample + 1).clamp(0, 2) / 2).x_BND
    found = cache.teacher_BND(samples)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert cache.fingerprint()["tokens"]["teacher"]["decoder"] == "tiny"
    cache.close()
    root = Path(shutil.copytree(built_with_flips, tmp_path / "c", ignore=shutil.ignore_patterns("dino_*")))
    stored = build_of(root, *keys)
    stored.run("tokens")
    cached = stored.track.open(stored.teacher)
    torch.testing.assert_close(cached.teacher_BND(samples).float(), found, rtol=2e-3, atol=1e-3)
    cached.close()


@pytest.mark.slow
def test_the_mean_of_moments_is_decoded_and_online_latents_are_decoded_directly(
    decoded: Path, build_of: Any, material: Path
) -> None:
    build = build_of(decoded, "data.flip=true", DECODED, ONLINE, "data.online_latents=true", "data.moments=true")
    cache = build.track.open(build.teacher)
    samples = some(cache)
    x0 = cache.latents.tensor([s.key for s in samples])
    assert x0.shape[1:] == (2, 4, 8, 8)
    expected = build.teacher.tokens(seen_through_the_vae(material, x0[:, 0])).x_BND
    torch.testing.assert_close(cache.teacher_BND(samples), expected, rtol=1e-4, atol=1e-5)
    cache.close()


@pytest.mark.slow
def test_a_run_trains_on_them(trainer_of: Callable[..., Any], material: Path, decoded: Path) -> None:
    small = (
        *("+experiment=repa_cifar10", "tracking=none", "data.source=folder", f"data.images={material / 'photos'}"),
        *(f"data.root={decoded}", "data.train=train_200k.csv", "data.val=val_50k.csv", "data.moments=false"),
        *("data.image_size=64", f"data.vae={material / 'sd'}", "data.latent_shape=[4,8,8]", "data.num_classes=2"),
        *(f"teacher.model={material / 'dino'}", "teacher.image_size=56", "teacher.grid=[4,4]", "teacher.width=32"),
        *("backbone.depth=4", "backbone.width=32", "backbone.heads=2", "head.hidden=16", "loss=repa_tiny"),
        *("trainer.precision=fp32", "trainer.batch_size=16", "trainer.validation_group=16", "trainer.max_steps=8"),
    )
    rows = []
    for more in ((), (ONLINE,)):
        trainer = trainer_of(*small, DECODED, *more)
        trainer.update(0, trainer.reader.read(0), with_tap_gradients=False)
        rows.append(trainer.validate(1))
    assert rows[1]["val/token"] == pytest.approx(rows[0]["val/token"], abs=1e-3)


# --- what is written down -----------------------------------------------------------------------------------


def test_a_manifest_records_decoded_images_and_omits_plain_ones(decoded: Path, built_with_flips: Path) -> None:
    for name in ("dino_tokens_lmdb", "dino_tokens_lmdb_flip"):
        known = json.loads((decoded / name / "manifest.json").read_text())["teacher"]
        assert (known["sees"], known["decoder"]) == ("decoded", "sd")
        before = json.loads((built_with_flips / name / "manifest.json").read_text())["teacher"]
        assert not {"sees", "decoder"} & before.keys()


@pytest.mark.slow
def test_tokens_of_something_else_are_refused_whichever_way(
    decoded: Path, built_with_flips: Path, build_of: Any, tae: Path
) -> None:
    tiny = ("data.teacher_sees=tae_decoded", f"data.tae={tae}")
    for root, keys, said in (
        (decoded, (), "teacher.sees: 'decoded' there, 'images' here, teacher.decoder: 'sd' there, None here"),
        (built_with_flips, (DECODED,), "teacher.sees: 'images' there, 'decoded' here"),
        (decoded, tiny, "teacher.sees: 'decoded' there, 'tae_decoded' here, teacher.decoder: 'sd' there, 'tiny' here"),
    ):
        build = build_of(root, *keys)
        with pytest.raises(UserError, match=said):
            build.track.open(build.teacher)
        with pytest.raises(UserError, match=said):  # nor are more of them put beside these
            build.run("tokens")
    build = build_of(decoded, *tiny)
    with pytest.raises(UserError, match=rf"data.teacher_sees=tae_decoded data.tae={tae}` and the same other"):
        build.track.open(build.teacher)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_keys_that_do_not_go_together_are_refused(compose: Any, tmp_path: Path) -> None:
    def refused(*keys: str) -> str:
        given = ["+experiment=track_a", f"data.root={tmp_path}", *keys]
        with pytest.raises(UserError) as error:
            check(compose(*given), given)
        return str(error.value)

    assert refused("data.teacher_sees=tae_decoded").startswith(
        "data.teacher_sees=tae_decoded needs data.tae, as data.tae="
    )
    assert refused(DECODED, "data.tae=a/b").startswith("data.tae has no effect with data.teacher_sees=decoded; drop it")
    assert refused("data.tae=a/b").startswith("data.tae has no effect with data.teacher_sees=images; drop it")
    without = ("loss=none", "~evaluation", "+evaluation={}", DECODED)
    assert refused(*without) == "data.teacher_sees has no effect with loss=none, which has no teacher; drop it"


@pytest.mark.slow
def test_autoencoders_that_do_not_fit_are_refused(
    built: Path, build_of: Any, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # a hub that is away is asked for 40 s

    def refused(name: Path | str, *more: str) -> str:
        build = build_of(built, "data.teacher_sees=tae_decoded", f"data.tae={name}", ONLINE, *more)
        with pytest.raises(UserError) as error:
            build.track.open(build.teacher)
        return str(error.value)

    assert "data.tae=no/where could not be loaded" in refused("no/where")
    assert "decodes latents of 16 channels; data.latent_shape has 4" in refused(write_tae(tmp_path / "wide", 16))
    kl = material / "sd" / "vae"
    assert refused(kl) == f"data.tae={kl} is of the class AutoencoderKL; give an AutoencoderTiny"
    normalised = Path(shutil.copytree(material / "sd", tmp_path / "sd"))
    file = normalised / "vae" / "config.json"
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    file.write_text(json.dumps(json.loads(file.read_text()) | statistics))
    online = ("data.online_latents=true", f"data.vae={normalised}")
    assert "takes latents without latents_mean, which data.vae=" in refused(write_tae(tmp_path / "t", 4), *online)


# --- words and costs ----------------------------------------------------------------------------------------


def test_the_description_and_prefetch_know_the_decoder(compose: Any) -> None:
    plain = declaration_of(compose("data=track_a")["data"])
    assert "The teacher sees" not in plain.description("100 images")
    tiny = compose("data=track_a", "data.teacher_sees=tae_decoded", "data.tae=madebyollin/taesd")
    track = declaration_of(tiny["data"])
    said = "The teacher sees the latents decoded by the Tiny AutoEncoder of madebyollin/taesd, not the images."
    assert said in track.description("100 images")
    assert track.hub_files()["madebyollin/taesd"] == ["config.json", "diffusion_pytorch_model.safetensors"]
    seen = declaration_of(compose("data=track_a", DECODED)["data"])
    assert "The teacher sees the latents decoded by the VAE, not the images." in seen.description("100 images")


def products(decoder: nn.Module, z: Tensor) -> int:
    """FLOPs of decoding one latent: two per weight of a convolution or projection at each position, and the attention
    in the middle."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        places = output.numel() // output.shape[1] if isinstance(module, nn.Conv2d) else output[..., 0].numel()
        total += 2 * places * module.weight.numel()  # type: ignore[operator,union-attr]

    for module in decoder.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        decoder.decode(z)  # type: ignore[operator]
    return total


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [False, True], ids=["vae", "tae"])
def test_a_plan_counts_the_decoder_where_the_teacher_is_asked(
    compose: Any, material: Path, tae: Path, tmp_path: Path, tiny: bool
) -> None:
    keys = ["+experiment=repa_cifar10", f"data.root={tmp_path}", f"data.vae={material / 'sd'}"]
    keys += ["data.source=folder", f"data.images={material / 'photos'}", "data.latent_shape=[4,8,8]"]
    keys += ["data.image_size=64", "data.train_images=64", "data.val_images=16", "data.num_classes=2"]
    keys += ["backbone.depth=8", "backbone.width=32", "backbone.heads=2", "teacher.image_size=56", "teacher.grid=[4,4]"]
    keys += ["trainer.batch_size=16", "trainer.validation_group=16"]
    sees = ["data.teacher_sees=tae_decoded", f"data.tae={tae}"] if tiny else [DECODED]
    cpu = Device("cpu", "cpu", None, None)
    plain, stored, asked = (plan(compose(*keys, *k), cpu) for k in ([ONLINE], sees, [*sees, ONLINE]))
    assert stored.flops_per_step == plan(compose(*keys), cpu).flops_per_step  # what is cached costs no step
    network: Any = (
        AutoencoderTiny.from_pretrained(tae) if tiny else AutoencoderKL.from_pretrained(material / "sd" / "vae")
    )
    del network.encoder
    attention = 0 if tiny else 4 * 64**2 * 16
    expected = products(network, torch.zeros(1, 4, 8, 8)) + attention
    assert asked.flops("forward")["decoder"] / 16 == pytest.approx(expected, rel=1e-3)
    assert asked.flops_per_step - plain.flops_per_step == asked.flops("forward")["decoder"]
    assert asked.counted.parameters["decoder"] == {"all": sum(p.numel() for p in network.parameters()), "trainable": 0}
    assert asked.counted.weights["decoder"] == sum(p.nbytes for p in network.parameters())
    assert asked.counted.weights["decoder, at work"] > 2 * 8 * 4 * 8 * 64 * 64  # two threads, 8 images, 8 channels
    assert asked.flops_after_stop == plain.flops_after_stop
