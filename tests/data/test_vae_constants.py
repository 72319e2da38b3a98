"""The constants between a VAE's latents and x0: shift, scale and statistics per channel, compared with the arithmetic
of diffusers' own pipelines; and VAEs without a posterior.

Shapes: B images, S image size, CHW latent.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.data.stages.encode import vae_encoder
from urepa.data.stages.image_archives import ImageArchive
from urepa.data.stages.vae import decode, encode, load_vae, vae_without_weights
from urepa.data.stages.vae_config import known_scaling
from urepa.data.stores.record_reading import Store
from urepa.evaluation.measures.image_distances_math import _decoder_sha256

MEAN, STD = [-0.3, 1.2, 0.5, -2.0], [0.7, 1.9, 0.4, 1.1]
SHIFTED = {"scaling_factor": 1.5305, "shift_factor": 0.0609}  # Stable Diffusion 3's
PER_CHANNEL = {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD}  # Playground 2.5 has such
CONSTANTS: dict[str, dict[str, Any]] = {"plain": {}, "shift": SHIFTED, "per_channel": PER_CHANNEL}
NAMES = ("shift_factor", "latents_mean", "latents_std")


def with_config(material: Path, place: Path, **changes: Any) -> Path:
    """A copy of the photographs' VAE with other config values, under the same name."""
    folder = place / "sd"
    shutil.copytree(material / "sd" / "vae", folder / "vae")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def write_dc(folder: Path) -> Path:
    """A small random AutoencoderDC: 8 channels at 1/4."""
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"attention_head_dim": 4, "latent_channels": 8, "scaling_factor": 0.41407}
    for coder in ("encoder", "decoder"):
        sizes |= {f"{coder}_block_types": "ResBlock", f"{coder}_block_out_channels": (8, 8, 16)}
        sizes |= {f"{coder}_layers_per_block": (1, 1, 1), f"{coder}_qkv_multiscales": ((), (), ())}
    AutoencoderDC(**sizes).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(params=CONSTANTS)
def folder(request: pytest.FixtureRequest, material: Path, tmp_path: Path) -> Path:
    return with_config(material, tmp_path / request.param, **CONSTANTS[request.param])


@pytest.fixture
def images_B3SS(built: Path) -> Tensor:
    """Photographs, uint8."""
    archive = ImageArchive(built)
    return archive.pixels(list(Store(built / "vae_latents_lmdb").keys())[:3])


# --- diffusers' arithmetic ---------------------------------------------------------------------------------


def sampled_by_diffusers(vae: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
    """x0 of a posterior's sample, from `prepare_latents` of the image-to-image pipeline of such a VAE, and the standard
    normal numbers of that sample."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        StableDiffusion3Img2ImgPipeline,
        StableDiffusionXLImg2ImgPipeline,
    )

    count, own = len(pixels_B3SS), torch.Generator().manual_seed(3)
    noise = torch.randn(vae.encode(pixels_B3SS).latent_dist.mean.shape, generator=torch.Generator().manual_seed(3))
    if vae.config.shift_factor is None:
        xl = SimpleNamespace(vae=vae)
        arguments = (pixels_B3SS, None, count, 1, torch.float32, "cpu", own, False)
        return StableDiffusionXLImg2ImgPipeline.prepare_latents(xl, *arguments), noise  # type: ignore[arg-type]
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[0.0])  # x0 without noise
    sd3 = SimpleNamespace(vae=vae, scheduler=scheduler)
    arguments = (pixels_B3SS, scheduler.timesteps.repeat(count), count, 1, torch.float32, "cpu", own)  # type: ignore[assignment]
    return StableDiffusion3Img2ImgPipeline.prepare_latents(sd3, *arguments), noise  # type: ignore[arg-type]


def sampler_of(vae: Any) -> Any:
    """image_of(output_type): one step of the pipeline of such a VAE, with a small random denoiser."""
    from diffusers import (
        DDIMScheduler,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    given: dict[str, Any] = {"prompt_embeds": torch.randn(1, 5, 16), "pooled_prompt_embeds": torch.randn(1, 16)}
    given |= {"latents": torch.randn(1, 4, 8, 8), "num_inference_steps": 1, "guidance_scale": 1.0}
    if vae.config.shift_factor is None:
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        )
        none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        pipe: Any = StableDiffusionXLPipeline(vae, unet=unet, scheduler=DDIMScheduler(), add_watermarker=False, **none)
    else:
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
        )
        encoders = [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")]
        pipe = StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(), vae, **dict.fromkeys(encoders))
    pipe.set_progress_bar_config(disable=True)
    return lambda output_type: pipe(height=64, width=64, output_type=output_type, **given).images


def test_moments_are_those_of_diffusers_own_sample(folder: Path, images_B3SS: Tensor) -> None:
    made, facts = vae_encoder(str(folder), moments=True)
    mean, std = torch.from_numpy(made(images_B3SS)).unbind(1)
    vae = load_vae(str(folder))
    with torch.no_grad():
        expected, noise = sampled_by_diffusers(vae, images_B3SS / 127.5 - 1)
    torch.testing.assert_close(mean + std * noise, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encode(vae, images_B3SS / 255), mean, rtol=1e-4, atol=1e-4)
    constants = {"scaling_factor": 0.18215} | CONSTANTS[folder.parent.name]
    assert facts == {"vae": "sd", "moments": True} | constants


def test_x0_is_decoded_as_diffusers_pipelines_decode_it(folder: Path) -> None:
    vae = load_vae(str(folder))
    image_of = sampler_of(vae)
    x0 = image_of("latent")
    assert x0.std() > 0.1
    torch.testing.assert_close(decode(vae, x0), image_of("pt"), rtol=1e-5, atol=1e-5)


def test_without_shift_latents_are_scaled_by_a_factor_bit_for_bit(material: Path, images_B3SS: Tensor) -> None:
    vae = load_vae(str(material / "sd"))
    made, facts = vae_encoder(str(material / "sd"), moments=False)
    with torch.inference_mode():
        z = vae.encode(images_B3SS / 127.5 - 1).latent_dist.mode()
        assert np.array_equal(made(images_B3SS), (z * 0.18215).numpy())
        x0 = z * 0.18215
        by_hand = torch.cat([vae.decode(x / 0.18215).sample for x in x0.split(1)])
    assert torch.equal(decode(vae, x0), (by_hand / 2 + 0.5).clamp(0, 1))
    assert list(facts) == ["vae", "scaling_factor", "moments"]  # in this order: a manifest's bytes stay what they were


# --- stores ------------------------------------------------------------------------------------------------


@pytest.fixture
def rebuilt(built: Path, tmp_path: Path) -> Path:
    """The photographs' track without its latents."""
    place = tmp_path / "cache"
    return Path(shutil.copytree(built, place, ignore=shutil.ignore_patterns("vae_latents_lmdb*", "dino*")))


@pytest.mark.slow
def test_stored_latents_name_their_constants_and_are_what_is_encoded_in_training(
    folder: Path, rebuilt: Path, build_of: Any
) -> None:
    build = build_of(rebuilt, f"data.vae={folder}")
    build.run("latents")
    cache = build.track.open(None)
    online = build_of(rebuilt, f"data.vae={folder}", "data.online_latents=true").track.open(None)
    manifest, constants = cache.latents.manifest, CONSTANTS[folder.parent.name]
    assert {key: manifest[key] for key in NAMES if key in manifest} == {
        k: constants[k] for k in NAMES if k in constants
    }
    assert {"kind": "online"} | {
        k: manifest[k] for k in online.latents.manifest if k != "kind"
    } == online.latents.manifest
    samples = cache.splits["val"][:3]
    stored, encoded = cache.x0(samples), online.x0(samples)
    torch.testing.assert_close(stored, encoded, rtol=2**-10, atol=1e-6)
    images = ImageArchive(rebuilt)([s.sample_id for s in samples])
    torch.testing.assert_close(build.track.to_x0(images), encoded, rtol=1e-4, atol=1e-4)
    vae = load_vae(str(folder))
    with torch.no_grad():  # there and back, the VAE's own reconstruction
        own = (vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(build.track.to_rgb(encoded), own, rtol=1e-3, atol=1e-4)
    for opened in (cache, online):
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shift", "per_channel"])
def test_latents_of_other_constants_are_refused_both_ways(
    material: Path, built: Path, build_of: Any, tmp_path: Path, name: str
) -> None:
    """A store of an earlier version, whose manifest has only a factor, with a VAE that has more constants; and the
    reverse."""
    plain = material / "sd"
    other = with_config(material, tmp_path, **CONSTANTS[name] | {"scaling_factor": 0.18215})
    key = "shift_factor" if name == "shift" else "latents_mean"
    root = Path(shutil.copytree(built, tmp_path / "cache"))
    file = root / "vae_latents_lmdb" / "manifest.json"
    manifest = json.loads(file.read_text())
    assert not manifest.keys() & set(NAMES)
    build_of(root, f"data.vae={plain}").run("latents")  # an old manifest and a VAE without shift agree
    for constants, mine, said in (
        ({}, other, f"{key}: {'0.0' if name == 'shift' else 'None'} there"),
        (CONSTANTS[name], plain, f"{key}: .* there, {'0.0' if name == 'shift' else 'None'} here"),
    ):
        file.write_text(json.dumps(manifest | constants | {"scaling_factor": 0.18215}))
        build = build_of(root, f"data.vae={mine}")
        for refuse in (lambda: build.run("latents"), lambda: build.track.open(None)):  # noqa: B023
            with pytest.raises(UserError, match=f"was made differently .*{said}"):
                refuse()
        with pytest.raises(UserError, match=f"scaled otherwise than data.vae=.*{said}.*give data.vae=FOLDER"):
            build.track.to_rgb(torch.zeros(1, 4, 8, 8))
    file.write_text(json.dumps({k: v for k, v in manifest.items() if k not in ("vae", "scaling_factor")}))
    adopted = build_of(root, f"data.vae={other}").track  # does not say what it was made with
    adopted.open(None).close()
    adopted.to_rgb(torch.zeros(1, 4, 8, 8))


def test_features_of_decoded_images_are_kept_by_the_constants(material: Path, tmp_path: Path) -> None:
    folders = [with_config(material, tmp_path / str(i), shift_factor=s) for i, s in enumerate((None, 0.0, 0.1, 0.2))]
    digests = [_decoder_sha256(load_vae(str(folder))) for folder in folders]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latents_mean": MEAN}, "has latents_mean but no latents_std"),
        ({"latents_std": STD}, "has latents_std but no latents_mean"),
        (
            {"latents_mean": MEAN[:3], "latents_std": STD},
            "has a latents_mean of 3 and a latents_std of 4 numbers for 4",
        ),
        ({"latents_mean": MEAN * 2, "latents_std": STD * 2}, "has a latents_mean of 8 .* for 4 channels"),
        ({"latents_mean": MEAN, "latents_std": [1, 1, 0, 1]}, "has a latents_std of 0, where it must be above 0"),
        (PER_CHANNEL | {"shift_factor": 0.1}, "has both shift_factor and latents_mean"),
        (
            {"_class_name": "AutoencoderTiny"},
            "is of the class AutoencoderTiny; give one of AutoencoderKL or Autoencode",
        ),
    ],
)
def test_incomplete_constants_are_refused(material: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = with_config(material, tmp_path, **changes)
    with pytest.raises(UserError, match=f"data.vae={folder} {said}"):
        load_vae(str(folder))


# --- no posterior ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_vae_without_a_posterior_gives_its_latent(rebuilt: Path, build_of: Any, tmp_path: Path) -> None:
    from diffusers import AutoencoderDC

    folder = write_dc(tmp_path / "dc")
    own = (f"data.vae={folder}", "data.latent_shape=[8,16,16]")
    build = build_of(rebuilt, *own)
    build.run("latents")
    cache = build.track.open(None)
    samples = cache.splits["val"][:2]
    vae: Any = AutoencoderDC.from_pretrained(folder / "vae").eval()
    images = ImageArchive(rebuilt)([s.sample_id for s in samples])
    with torch.no_grad():
        latent = vae.encode(images * 2 - 1).latent
        rgb = (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)  # pipeline_sana.py: latents / scaling_factor
    torch.testing.assert_close(cache.x0(samples), latent * 0.41407, rtol=2**-9, atol=1e-3)
    torch.testing.assert_close(build.track.to_rgb(latent * 0.41407), rgb, rtol=1e-4, atol=1e-4)
    cache.close()
    with pytest.raises(UserError, match="is an AutoencoderDC, which has no posterior; give data.moments=false"):
        build_of(rebuilt, *own, "data.moments=true", "data.latents=moments").run("latents")
    with pytest.raises(
        UserError, match=r"makes latents of shape \[8, 16, 16\] from these images; data.latent_shape=\[4, 8, 8"
    ):
        build_of(rebuilt, own[0], "data.latents=other").run("latents")
    with torch.device("meta"):
        counted = vae_without_weights(str(folder), 8)
    assert sum(p.numel() for p in counted.parameters()) == sum(p.numel() for p in vae.parameters())


# --- what is said ------------------------------------------------------------------------------------------


def test_a_description_says_what_is_done_to_latents(material: Path, tmp_path: Path, compose: Any) -> None:
    from urepa.config.declared import declaration_of

    def described(vae: str) -> str:
        return str(
            declaration_of(
                compose("data=cifar10_256", "data.moments=false", f"data.vae={vae}", root="preprocess")["data"]
            ).description("")
        )

    assert "(its posterior's mode, shifted and scaled as its config says)" in described("owner/nowhere")
    assert "(its posterior's mode, times its scaling factor)" in described(str(material / "sd"))
    shifted = with_config(material, tmp_path / "shifted", **SHIFTED)
    assert "(its posterior's mode, less its shift factor, times its scaling factor)" in described(str(shifted))
    per_channel = with_config(material, tmp_path / "channels", **PER_CHANNEL)
    assert "normalised per channel by its latents_mean and latents_std, times its sc" in described(str(per_channel))
    assert "(which have no posterior, times its scaling factor)" in described(str(write_dc(tmp_path / "dc")))


def test_a_config_in_the_hubs_cache_is_read_without_the_weights(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--name"
    folder = with_config(material, tmp_path, **SHIFTED)
    snapshot = repository / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    shutil.copy(folder / "vae" / "config.json", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("ab" * 20)
    assert known_scaling("owner/name") == known_scaling(str(folder))
    assert known_scaling("owner/other") is None
