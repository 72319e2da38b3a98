"""LoRA files in kohya-ss's layout: the keys and shapes of sd-scripts, values that mean W + (α/r)·up·down, and the same
predictions when diffusers reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kohya_upstream
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.backbones.unet_net import StagedUNet
from urepa.models.lora.kohya_net import kohya_tensors, load_kohya_lora, write_kohya_lora
from urepa.models.lora.lora_net import add_lora
from urepa.models.unet_families import FAMILIES

# SDXL's unet/config.json, as far as it differs from the defaults of UNet2DConditionModel
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 16,
    "layers_per_block": 2,
}
TINY_SDXL: dict[str, Any] = SDXL | {
    "sample_size": 8,
    "block_out_channels": (32, 32, 64),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 2, 4),
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 8,
}
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Staged(StagedUNet):
    """A U-Net in stages that is never asked for a prediction."""

    def attended(self, condition: Any) -> Any:
        raise AssertionError("its diffusers' module is asked instead")


def unet_of(architecture: Mapping[str, Any], **lora: Any) -> Any:
    """A U-Net of this architecture, with adapters that have an effect if some are requested."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    staged = Staged(UNet2DConditionModel(**architecture))
    if lora:
        add_lora(staged, **{"alpha": None, "dropout": 0.0, "targets": "attention", "blocks": "mid"} | lora)
        for name, parameter in staged.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return staged.unet.eval()


def predict(unet: Any) -> Tensor:
    torch.manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 3, unet.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(2, 8), "time_ids": torch.rand(2, 6)}
    with torch.no_grad():
        return unet(x, 300, text, added_cond_kwargs=added).sample  # type: ignore[no-any-return]


# --- names and shapes -------------------------------------------------------------------------------------------


def test_the_lists_are_upstreams() -> None:
    """sd-scripts logs 192 modules of SD-1.5's U-Net and 722 of SDXL's; with conv_dim, 278 and 788."""
    for model, of_transformers, all_of_them in (("sd15", 192, 278), ("sdxl", 722, 788)):
        rows = kohya_upstream.listed(model)
        assert rows == kohya_upstream.rows(model)
        inside = [row for row in rows if any(part in row[0] for part in ("transformer_blocks", "proj_in", "proj_out"))]
        assert (len(inside), len(rows), len({row[0] for row in rows})) == (of_transformers, all_of_them, all_of_them)


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("model", "targets", "blocks", "modules"),
    [
        ("sd15", "attention", "mid", 8),
        ("sd15", "attention", "all", 16 * 8),
        ("sd15", "attention_conv", "all", 16 * 8 + 22 * 2),
        ("sdxl", "attention", "mid", 10 * 8),
        ("sdxl", "attention_conv", "all", 70 * 8 + 17 * 2),
    ],
)
def test_our_keys_and_shapes_are_upstreams(model: str, targets: str, blocks: str, modules: int) -> None:
    """For the real architectures, on the meta device."""
    with torch.device("meta"):
        unet = unet_of(
            {"sd15": FAMILIES["sd15"].architecture, "sdxl": SDXL}[model], rank=8, targets=targets, blocks=blocks
        )
    ours = {name: tuple(value.shape) for name, value in kohya_tensors(unet).items()}
    upstream = kohya_upstream.shapes(model, 8)
    assert len(ours) == 3 * modules
    assert ours == {name: upstream[name] for name in ours}
    assert sum(name.endswith(".alpha") for name in ours) == modules
    if targets == "attention_conv":
        convs = [name for name, shape in ours.items() if shape[-2:] == (3, 3)]
        assert len(convs) == (44 if model == "sd15" else 34)
        assert convs[0].split(".")[0].endswith("_conv1" if model == "sd15" else "_in_layers_2")


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.fast(1)
@pytest.mark.parametrize("use_rslora", [False, True], ids=["plain", "rslora"])
@pytest.mark.parametrize("architecture", [TINY, TINY_SDXL], ids=["sd15", "sdxl"])
def test_a_file_means_what_its_readers_compute(architecture: dict[str, Any], use_rslora: bool, tmp_path: Path) -> None:
    """As ComfyUI merges it: W + (α/r)·up·down, using only the list of names above."""
    adapted = unet_of(architecture, rank=3, alpha=6, use_rslora=use_rslora, targets="attention_conv", blocks="all")
    write_kohya_lora(adapted, tmp_path / "lora.safetensors")
    file, merged = load_file(tmp_path / "lora.safetensors"), unet_of(architecture)
    names = {name.partition(".")[0] for name in file}
    assert all(name.startswith("lora_unet_") for name in names)
    is_sdxl = architecture is TINY_SDXL
    to_diffusers = {kohya: path for path, kohya in by_hand(merged, is_sdxl)}
    for name in names:
        weight = merged.get_submodule(to_diffusers[name]).weight
        down, up = file[f"{name}.lora_down.weight"], file[f"{name}.lora_up.weight"]
        scale = file[f"{name}.alpha"].item() / len(down)
        weight.data += scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    assert scale == pytest.approx(6 / 3**0.5 if use_rslora else 2)
    torch.testing.assert_close(predict(merged), predict(adapted), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(predict(merged), predict(unet_of(architecture)), atol=0.01)


def by_hand(unet: Any, is_sdxl: bool) -> list[tuple[str, str]]:
    """Path and name of each layer; SDXL's blocks listed by hand, for two resnets per block and three resolutions."""
    blocks = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    blocks |= {"mid_block.attentions.0": "middle_block.1"}
    for n, place in enumerate(("0.0", "0.1", None, "1.0", "1.1", None, "2.0", "2.1"), 1):
        if place is not None:
            block, j = place.split(".")
            blocks[f"down_blocks.{block}.resnets.{j}"] = f"input_blocks.{n}.0"
            blocks[f"down_blocks.{block}.attentions.{j}"] = f"input_blocks.{n}.1"
    for n in range(9):
        blocks[f"up_blocks.{n // 3}.resnets.{n % 3}"] = f"output_blocks.{n}.0"
        blocks[f"up_blocks.{n // 3}.attentions.{n % 3}"] = f"output_blocks.{n}.1"
    found = []
    for path, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            block = ".".join(path.split(".")[: 4 if path[0] != "m" else 3])
            name = path
            if is_sdxl and block in blocks:
                rest = path.removeprefix(f"{block}.")
                name = f"{blocks[block]}.{ {'conv1': 'in_layers.2', 'conv2': 'out_layers.3'}.get(rest, rest) }"
            found.append((path, f"lora_unet_{name.replace('.', '_')}"))
    return found


def in_fp16(file: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half() for name, value in file.items()}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [TINY, TINY_SDXL], ids=["sd15", "sdxl"])
def test_a_written_file_is_read_again(architecture: dict[str, Any], tmp_path: Path) -> None:
    adapted, file = unet_of(architecture, rank=3, alpha=6, targets="attention_conv", blocks="all"), tmp_path / "a"
    write_kohya_lora(adapted, file)
    ours = Staged(unet_of(architecture))
    ours.load_adapters(file)
    assert torch.equal(predict(ours.unet), predict(adapted))
    assert not any(".lora_" in name and p.dtype != torch.float32 for name, p in ours.unet.named_parameters())
    save_file(in_fp16(load_file(file)), tmp_path / "half")
    half = unet_of(architecture)
    load_kohya_lora(half, tmp_path / "half")
    torch.testing.assert_close(predict(half), predict(adapted), rtol=0.02, atol=0.02)
    assert all(p.dtype == torch.float32 for p in half.parameters())


def test_ranks_and_alphas_may_differ_and_either_name_is_read(tmp_path: Path) -> None:
    """sd-scripts writes both per block; ComfyUI accepts diffusers' names for SDXL too. Without an α, α is the rank."""
    unet = unet_of(TINY_SDXL)
    torch.manual_seed(2)
    q, k, conv = (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.1.attn2.to_k",
        "up_blocks.0.upsamplers.0.conv",
    )
    parts = {
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": (torch.randn(2, 64), torch.randn(64, 2), 1.0),
        "lora_unet_mid_block_attentions_0_transformer_blocks_1_attn2_to_k": (
            *(torch.randn(5, 16), torch.randn(64, 5)),
            None,
        ),
        "lora_unet_output_blocks_2_2_conv": (torch.randn(4, 64, 3, 3), torch.randn(64, 4, 1, 1), 8.0),
    }
    file: dict[str, Tensor] = {}
    for name, (down, up, alpha) in parts.items():
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        file |= {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    save_file(file, tmp_path / "lora.safetensors")
    expected = unet_of(TINY_SDXL)
    for path, (down, up, alpha) in zip((q, k, conv), parts.values(), strict=True):
        weight, scale = expected.get_submodule(path).weight, 1.0 if alpha is None else alpha / len(down)
        weight.data += scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    load_kohya_lora(unet, tmp_path / "lora.safetensors")
    torch.testing.assert_close(predict(unet), predict(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda file: file | {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)},
            "adapts the text encoder too (lora_te...)",
        ),
        (
            lambda file: file | {"lora_unet_up_blocks_9_conv.lora_down.weight": torch.zeros(2, 2)},
            "of its 9 modules 1 have no place as a plain LoRA (the first: lora_unet_up_blocks_9_conv with lora_down.w",
        ),
        (
            lambda file: {name.replace("lora_down.weight", "hada_w1_a"): value for name, value in file.items()},
            "of its 8 modules 8 have no place",
        ),
        (
            lambda file: file | {next(iter(file)).partition(".")[0] + ".dora_scale": torch.zeros(2)},
            "of its 8 modules 1 have no place",
        ),
        (
            lambda file: {name: torch.zeros(2, 7) if "attn2_to_k.lora_down" in name else v for name, v in file.items()},
            "of its 8 modules 1 have no place",
        ),
    ],
    ids=["text", "more", "loha", "dora", "shape"],
)
def test_weights_that_the_layout_cannot_represent_are_reported(tmp_path: Path, change: Change, said: str) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(change(kohya_tensors(unet_of(TINY, rank=2))), file)
    with pytest.raises(UserError) as raised:
        Staged(unet_of(TINY)).load_adapters(file)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


# --- diffusers' reading -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [TINY, TINY_SDXL], ids=["sd15", "sdxl"])
def test_diffusers_pipelines_read_the_same(architecture: dict[str, Any], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    adapted = unet_of(architecture, rank=3, alpha=6, targets="attention_conv", blocks="all")
    write_kohya_lora(adapted, tmp_path / "lora.safetensors")
    vae = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,) * 4)
    text = {"prompt_embeds": torch.randn(1, 3, 16), "negative_prompt_embeds": torch.randn(1, 3, 16)}
    if architecture is TINY_SDXL:
        text |= {"pooled_prompt_embeds": torch.randn(1, 8), "negative_pooled_prompt_embeds": torch.randn(1, 8)}
    noise = torch.randn(1, 4, 8, 8)

    def latents(unet: Any, file: Path | None) -> Tensor:
        if architecture is TINY_SDXL:
            nothing = {"text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
            pipe: Any = StableDiffusionXLPipeline(
                vae=vae, unet=unet, scheduler=DDIMScheduler(), add_watermarker=False, **nothing
            )
        else:
            pipe = StableDiffusionPipeline(
                vae, None, None, unet, DDIMScheduler(), None, None, requires_safety_checker=False
            )
        pipe.set_progress_bar_config(disable=True)
        if file is not None:
            pipe.load_lora_weights(file)
        made = pipe(latents=noise, **text, num_inference_steps=2, output_type="latent", height=64, width=64)
        return made.images  # type: ignore[no-any-return]

    ours = latents(adapted, None)
    theirs = latents(unet_of(architecture), tmp_path / "lora.safetensors")
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, latents(unet_of(architecture), None), atol=0.01)
