"""x0 as the families' own pipelines decode it, of small random VAEs; Flux.2's packed latents, whose statistics lie in
the VAE's weights.

Shapes: B images, S image size, CHW latent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from test_vae_constants import SHIFTED, with_config, write_dc
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.data.stages.encode import vae_encoder
from urepa.data.stages.image_archives import ImageArchive
from urepa.data.stages.vae import decode, encode, load_vae, scaling_of, shape_of_z, vae_without_weights
from urepa.data.stages.vae_config import known_config, known_scaling
from urepa.data.stores.record_reading import Store

SIDE = 64
STEP: dict[str, Any] = {"height": SIDE, "width": SIDE, "num_inference_steps": 1}


def write_flux2(folder: Path) -> Path:
    """A small random AutoencoderKLFlux2: 4 channels at 1/8, packed to 16 at 1/16, with statistics of its own."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    with torch.no_grad():
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.2, 3)
    vae.save_pretrained(folder / "vae")
    return folder


class Still(nn.Module):
    """A denoiser that predicts zeros: what is decoded is what the pipeline drew."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.anchor, self.max_seq = nn.Parameter(torch.zeros(1)), 16
        sizes: dict[str, Any] = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4}
        self.config = SimpleNamespace(**sizes | {"guidance_embeds": False, "timestep_scale": 1.0} | config)

    def cache_context(self, name: str) -> Any:
        return nullcontext()

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states),)


def text(width: int = 16, length: int = 5) -> Tensor:
    return torch.randn(1, length, width)


def masks(*names: str) -> dict[str, Tensor]:
    return {name: torch.ones(1, 5) for name in names}


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def packed_flux(pipe: Any, given: dict[str, Any]) -> Callable[[str], Tensor]:
    """Images, or x0 where the pipeline gives its packed tokens."""

    def image_of(output_type: str) -> Tensor:
        found = pipe(output_type=output_type, generator=torch.Generator().manual_seed(0), **STEP, **given).images
        return pipe._unpack_latents(found, SIDE, SIDE, 8) if output_type == "latent" else found

    return image_of


def plain(pipe: Any, given: dict[str, Any]) -> Callable[[str], Tensor]:
    def image_of(output_type: str) -> Tensor:
        return pipe(output_type=output_type, generator=torch.Generator().manual_seed(0), **STEP, **given).images

    return image_of


def flux(vae: Any) -> Callable[[str], Tensor]:
    pipe = diffusers.FluxPipeline(flow(), vae, None, None, None, None, Still(in_channels=16))
    return packed_flux(pipe, {"prompt_embeds": text(), "pooled_prompt_embeds": torch.randn(1, 8)})


def chroma(vae: Any) -> Callable[[str], Tensor]:
    pipe = diffusers.ChromaPipeline(flow(), vae, None, None, Still(in_channels=16))
    return packed_flux(pipe, {"prompt_embeds": text(), "guidance_scale": 0.0} | masks("prompt_attention_mask"))


def flux2(vae: Any) -> Callable[[str], Tensor]:
    pipe: Any = diffusers.Flux2Pipeline(flow(), vae, None, None, Still(in_channels=16))

    def image_of(output_type: str) -> Tensor:
        given = {"prompt_embeds": text(), "generator": torch.Generator().manual_seed(0)}
        found = pipe(output_type=output_type, **STEP, **given).images
        return found.transpose(1, 2).unflatten(2, (4, 4)) if output_type == "latent" else found

    return image_of


def lumina2(vae: Any) -> Callable[[str], Tensor]:
    pipe = diffusers.Lumina2Pipeline(Still(), flow(), vae, None, None)
    return plain(pipe, {"prompt_embeds": text(), "guidance_scale": 1.0} | masks("prompt_attention_mask"))


def hidream(vae: Any) -> Callable[[str], Tensor]:
    pipe = diffusers.HiDreamImagePipeline(flow(), vae, *[None] * 8, Still(max_resolution=[4, 4]))
    given: dict[str, Any] = {"prompt_embeds_t5": text(), "prompt_embeds_llama3": torch.randn(2, 1, 5, 16)}
    return plain(pipe, given | {"pooled_prompt_embeds": torch.randn(1, 8), "guidance_scale": 1.0})


def auraflow(vae: Any) -> Callable[[str], Tensor]:
    pipe = diffusers.AuraFlowPipeline(None, None, vae, Still(), flow())
    return plain(pipe, {"prompt_embeds": text(), "guidance_scale": 1.0} | masks("prompt_attention_mask"))


def pixart(vae: Any) -> Callable[[str], Tensor]:
    pipe = diffusers.PixArtSigmaPipeline(None, None, vae, Still(), diffusers.DPMSolverMultistepScheduler())
    given = {"prompt_embeds": text(), "guidance_scale": 1.0, "use_resolution_binning": False}
    return plain(pipe, given | {"negative_prompt": None} | masks("prompt_attention_mask"))


def sana(vae: Any) -> Callable[[str], Tensor]:
    pipe = diffusers.SanaPipeline(None, None, vae, Still(in_channels=8, patch_size=1), flow())
    given = {"prompt_embeds": text(), "guidance_scale": 1.0, "use_resolution_binning": False}
    return plain(pipe, given | {"negative_prompt": None} | masks("prompt_attention_mask"))


SHIFTED_FAMILIES = {"flux": flux, "chroma": chroma, "lumina2": lumina2, "hidream": hidream}
FAMILIES = SHIFTED_FAMILIES | {"auraflow": auraflow, "pixart": pixart, "sana": sana, "flux2": flux2}


@pytest.mark.fast(2)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_x0_is_decoded_as_the_familys_pipeline_decodes_it(family: str, material: Path, tmp_path: Path) -> None:
    if family == "flux2":
        folder = write_flux2(tmp_path)
    elif family == "sana":
        folder = write_dc(tmp_path)
    else:
        constants = SHIFTED if family in SHIFTED_FAMILIES else {"scaling_factor": 0.13025}
        folder = with_config(material, tmp_path, **constants)
    vae = load_vae(str(folder))
    torch.manual_seed(1)
    image_of = FAMILIES[family](vae)
    x0, expected = image_of("latent"), image_of("pt")
    assert x0.std() > 0.1
    torch.testing.assert_close(decode(vae, x0), expected, rtol=1e-5, atol=1e-5)
    assert (decode(vae, 1.05 * x0) - expected).abs().max() > 1e-4


# --- Flux.2 ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_flux2s_latents_are_packed_and_normalised_as_its_pipeline_does(tmp_path: Path) -> None:
    folder = write_flux2(tmp_path / "flux2")
    vae, images = load_vae(str(folder)), torch.rand(2, 3, 48, 80)
    pipe: Any = diffusers.Flux2Pipeline(flow(), vae, None, None, Still())
    expected = pipe._encode_vae_image(images * 2 - 1, torch.Generator())
    assert expected.shape == (2, 16, 3, 5)
    torch.testing.assert_close(encode(vae, images), expected, rtol=0, atol=0)
    pixels = (images * 255).round().to(torch.uint8)
    made, facts = vae_encoder(str(folder), moments=True)
    mean, std = torch.from_numpy(made(pixels)).unbind(1)
    posterior = vae.encode(pixels / 127.5 - 1).latent_dist
    scale = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps).view(-1, 1, 1)
    torch.testing.assert_close(mean, pipe._encode_vae_image(pixels / 127.5 - 1, torch.Generator()))
    torch.testing.assert_close(std, pipe._patchify_latents(posterior.std) / scale)
    assert (facts["scaling_factor"], facts["patch"], len(facts["latents_mean"])) == (1.0, 2, 16)
    assert json.loads(json.dumps(facts)) == facts
    assert scaling_of(vae) == known_scaling(str(folder))  # from the file, without the network


@pytest.mark.slow
def test_flux2s_latents_are_stored_and_opened(built: Path, build_of: Any, tmp_path: Path) -> None:
    """And refused where the statistics are others, or the shape is that of latents that are not packed."""
    root = tmp_path / "cache"
    shutil.copytree(built, root, ignore=shutil.ignore_patterns("vae_latents_lmdb*", "dino*"))
    folder = write_flux2(tmp_path / "flux2")
    own = (f"data.vae={folder}", "data.latent_shape=[16,4,4]")
    build = build_of(root, *own)
    build.run("latents")
    cache = build.track.open(None)
    assert Store(root / "vae_latents_lmdb").manifest["patch"] == 2
    samples = cache.splits["val"][:2]
    images = ImageArchive(root)([s.sample_id for s in samples])
    vae = load_vae(str(folder))
    with torch.no_grad():
        own_images = (vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(cache.x0(samples), build.track.to_x0(images), rtol=2**-9, atol=1e-3)
    torch.testing.assert_close(build.track.to_rgb(build.track.to_x0(images)), own_images, rtol=1e-3, atol=1e-4)
    cache.close()
    refusal = r"makes latents of shape \[16, 4, 4\] from these images; data.latent_shape=\[4, 8, 8"
    with pytest.raises(UserError, match=refusal):
        build_of(root, own[0], "data.latents=other").run("latents")
    with torch.no_grad():
        vae.bn.running_mean.add_(0.5)
    vae.save_pretrained(folder / "vae")
    other = build_of(root, *own)
    with pytest.raises(UserError, match="was made differently .*latents_mean"):
        other.track.open(None)


def test_flux2s_network_is_counted_without_its_weights(tmp_path: Path) -> None:
    folder = write_flux2(tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert known_scaling(str(folder)) is None
    assert known_config(str(folder)) is not None
    with torch.device("meta"):
        vae = vae_without_weights(str(folder), 16)
        assert vae.decode(torch.empty(1, *shape_of_z(vae, (16, 4, 4)))).sample.shape == (1, 3, SIDE, SIDE)
