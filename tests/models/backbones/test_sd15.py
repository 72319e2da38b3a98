"""SD-1.5's U-Net through its real loading code: parameters, taps, LoRA, wrong folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from class_ids import of_ids
from sd import LATENT, SMALL, small_parts, write_unet

from urepa.core.errors import UserError
from urepa.method.heads.conv_net import ConvHead
from urepa.models.backbones.sd15_net import sd15
from urepa.models.backbones.unet_net import UNet
from urepa.models.lora.lora_net import add_lora
from urepa.models.unet_families import FAMILIES


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_parts(tmp_path_factory.mktemp("small_sd"))


def load_small(small: dict[str, Path], **changes: Any) -> UNet:
    settings = {
        "weights": str(small["weights"]),
        "prompts": str(small["data"] / "clip_embeddings_1001.pt"),
        "gradient_checkpointing": False,
        "latent_shape": LATENT,
        "num_classes": 1000,
    }
    return sd15(**(settings | changes))


def real_architecture() -> UNet:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet(UNet2DConditionModel(**FAMILIES["sd15"].architecture), torch.empty(1001, 77, 768))


def lora_sizes(**changes: Any) -> list[int]:
    backbone = real_architecture()
    with torch.device("meta"):
        settings = {"rank": 8, "alpha": None, "dropout": 0.0, "targets": "attention", "blocks": "mid"}
        add_lora(backbone, **(settings | changes))
    return [p.numel() for p in backbone.parameters() if p.requires_grad]


@pytest.mark.slow
def test_the_architecture_is_sd15s() -> None:
    assert sum(p.numel() for p in real_architecture().unet.parameters()) == 859_520_964


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "parameters", "tensors"),
    [
        ({}, 155_648, 16),
        ({"targets": "attention_conv"}, 155_648 + 409_600, 24),
        ({"blocks": "all"}, 1_594_368, 256),
        ({"rank": 16}, 2 * 155_648, 16),
    ],
)
def test_lora_sizes(changes: dict[str, Any], parameters: int, tensors: int) -> None:
    sizes = lora_sizes(**changes)
    assert (sum(sizes), len(sizes)) == (parameters, tensors)


def test_alpha_follows_the_rank_unless_given(small: dict[str, Path]) -> None:
    for alpha, scale in ((None, 1.0), (8, 0.5)):
        backbone = load_small(small)
        add_lora(backbone, 16, alpha, 0.0, "attention", "mid")
        layer = backbone.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        assert layer.scaling["default"] == scale


@pytest.mark.fast(1)
@pytest.mark.parametrize("taps", [("mid",), ("enc_last",), ("dec_first",), ("mid", "enc_last", "dec_first")])
def test_the_prediction_is_diffusers_own_bit_for_bit(small: dict[str, Path], taps: tuple[str, ...]) -> None:
    backbone = load_small(small).eval()
    x, t = torch.randn(2, *LATENT), torch.tensor([3, 900])
    condition = of_ids(torch.tensor([1, 1000]), 1000)
    ours = backbone(x, t, condition, taps)
    theirs = backbone.unet(x, t, backbone.embedding_KLE[[1, 1000]]).sample
    assert torch.equal(ours.prediction_RCHW, theirs)
    grids = {"mid": (1, 1), "enc_last": (1, 1), "dec_first": (2, 2)}
    assert {tap: f.grid for tap, f in ours.features.items()} == {tap: grids[tap] for tap in taps}


@pytest.mark.slow
def test_taps_have_the_documents_shapes() -> None:
    backbone = real_architecture()
    with torch.device("meta"):
        t, ids = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        denoised = backbone(torch.empty(1, 4, 64, 64), t, of_ids(ids, 1000), ("mid", "enc_last", "dec_first"))
    shapes = {tap: (f.x_BND.shape[2], f.grid) for tap, f in denoised.features.items()}
    assert shapes == {"mid": (1280, (8, 8)), "enc_last": (1280, (8, 8)), "dec_first": (1280, (16, 16))}


def test_the_heads_sizes() -> None:
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in ConvHead(d, "after", in_width=1280, out_width=1024).parameters()) for d in (1, 2)
        ]
    assert sizes == [1_311_744, 2_360_320]


def test_the_old_hub_name_is_an_alias() -> None:
    from urepa.core.hub_names import ALIASES

    assert ALIASES["runwayml/stable-diffusion-v1-5"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("sdxl", "added conditions \\(text_time\\), as SDXL's is"),
        ("shard", "lacks 1 of its"),
        ("pickle", "as a pickle"),
        ("empty", "not a diffusers folder"),
        ("other class", "holds a AutoencoderKL"),
        ("missing weight", "1 weights are missing"),
        ("width", "takes text of width 24; the prompts have 16"),
        ("truncated", "cannot be read"),
    ],
)
def test_a_wrong_weights_folder_is_one_clear_line(
    small: dict[str, Path], tmp_path: Path, damage: str, expected: str
) -> None:
    folder = tmp_path / "weights"
    if damage == "width":
        write_unet(folder, **(SMALL | {"cross_attention_dim": 24}))
    elif damage == "shard":
        from diffusers import UNet2DConditionModel

        UNet2DConditionModel(**SMALL).save_pretrained(folder / "unet", max_shard_size="1MB")
        next(iter(sorted((folder / "unet").glob("*-of-*.safetensors")))).unlink()
    elif damage == "pickle":
        from diffusers import UNet2DConditionModel

        UNet2DConditionModel(**SMALL).save_pretrained(folder / "unet", safe_serialization=False)
    elif damage == "empty":
        folder.mkdir()
    else:
        write_unet(folder, **SMALL)
        damage_saved(folder / "unet", damage)
    with pytest.raises(UserError, match=expected) as caught:
        load_small(small, weights=str(folder))
    assert "\n" not in str(caught.value)


def damage_saved(unet: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    config_file, weights = unet / "config.json", unet / "diffusion_pytorch_model.safetensors"
    config = json.loads(config_file.read_text())
    if damage == "sdxl":
        config |= {"addition_embed_type": "text_time", "cross_attention_dim": 2048}
    elif damage == "other class":
        config["_class_name"] = "AutoencoderKL"
    elif damage == "missing weight":
        tensors = load_file(weights)
        del tensors["mid_block.resnets.0.conv1.weight"]
        save_file(tensors, weights)
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    config_file.write_text(json.dumps(config))
