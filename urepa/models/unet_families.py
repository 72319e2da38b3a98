"""The families of U-Nets in diffusers, without torch: their architectures, and how a config.json is assigned to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.models.diffusers_files import hub_files

HUB_FILES = hub_files("unet")
SIZES = 6  # ids of an image's size: original height and width, crop's top and left, target height and width


@dataclass(frozen=True)
class UNetFamily:
    """A family: `title` names it in sentences, `architecture` has the entries of unet/config.json that differ from the
    defaults of UNet2DConditionModel, `kind` says what distinguishes its U-Nets, `pipeline` is its class in diffusers,
    `adapter_files` the class of diffusers.loaders with which this pipeline reads LoRA files, and `backbones` the
    backbones that use it."""

    title: str
    architecture: Mapping[str, Any]
    kind: str
    pipeline: str
    adapter_files: str
    backbones: str


SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,  # 6·256 for sizes and crop, 1280 for the pooled vector
}
# text is projected from ChatGLM's width; 5632 is 6·256 for sizes and crop, and 4096 for the pooled vector
OF_CHATGLM = {
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "projection_class_embeddings_input_dim": 5632,
}
FAMILIES: dict[str, UNetFamily] = {
    "sd15": UNetFamily(
        "SD-1.5",
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "without added conditions, as SD-1.5's is",
        "StableDiffusionPipeline",
        "StableDiffusionLoraLoaderMixin",
        "sd15 or sd15_text",
    ),
    "sdxl": UNetFamily(
        "SDXL",
        SDXL,
        "with added conditions (text_time), as SDXL's is",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLLoraLoaderMixin",
        "sdxl",
    ),
    "kolors": UNetFamily(
        "Kolors",
        SDXL | OF_CHATGLM,
        "with added conditions (text_time) and a projection of its text, as Kolors' is",
        "KolorsPipeline",
        "StableDiffusionLoraLoaderMixin",
        "kolors",
    ),
}


def small_architecture(
    family: str,
    block_out_channels: Sequence[int],
    attention: Sequence[bool],
    layers_per_block: int,
    head_dim: int,
    *,
    latent_shape: Sequence[int],
    widths: Mapping[str, int],
) -> dict[str, Any]:
    """The entries of config.json of a family's U-Net at other sizes, for an x0 [C,H,W] and text of these widths (by the
    names of the condition's parts). A block with attention has one transformer layer."""
    channels, *sides = latent_shape
    architecture: dict[str, Any] = {
        "sample_size": tuple(sides),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(block_out_channels),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "layers_per_block": layers_per_block,
        # in diffusers attention_head_dim is the number of heads per resolution
        "attention_head_dim": tuple(width // head_dim for width in block_out_channels),
        "cross_attention_dim": widths[TEXT],
    }
    published = FAMILIES[family].architecture
    for name in ("use_linear_projection", "addition_embed_type", "addition_time_embed_dim", "encoder_hid_dim_type"):
        if name in published:
            architecture[name] = published[name]
    if "encoder_hid_dim" in published:
        architecture["encoder_hid_dim"] = widths[TEXT]
    if "addition_time_embed_dim" in published:
        added = SIZES * published["addition_time_embed_dim"] + widths[POOLED]
        architecture["projection_class_embeddings_input_dim"] = added
    return architecture


def family_of_unet(config: Mapping[str, Any]) -> str | None:
    """The family of a U-Net's config.json; None if it is none of these."""
    added, projection = config.get("addition_embed_type"), config.get("encoder_hid_dim_type")
    if config.get("class_embed_type") is not None or projection not in (None, "text_proj"):
        return None
    if added is None:
        return "sd15" if projection is None else None
    if added != "text_time":
        return None
    return "sdxl" if projection is None else "kolors"


def check_unet_config(config: Mapping[str, Any], family: str, where: str) -> None:
    """Raises UserError if a config.json does not describe a U-Net of this family."""
    if config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(f"{where} holds a {config.get('_class_name')}, not a UNet2DConditionModel")
    found = family_of_unet(config)
    if found == family:
        return
    own = FAMILIES[family]
    takes = f"backbone={own.backbones} takes that of {own.title}"
    if found is None:
        raise UserError(f"{where} is a U-Net of a family that no backbone here has; {takes}")
    other = FAMILIES[found]
    raise UserError(f"{where} is a U-Net {other.kind}; {takes}, and backbone={other.backbones} this one")


def check_text_widths(config: Mapping[str, Any], family: str, weights: str, widths: Mapping[str, int]) -> None:
    """Raises UserError if a U-Net of this family with this config.json takes text of other widths (`widths`: by the
    names of the condition's parts)."""
    projected = config.get("encoder_hid_dim")
    taken = {TEXT: config["cross_attention_dim"] if projected is None else projected}
    if config.get("addition_embed_type") is not None:
        taken[POOLED] = config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"]
    for part, width in taken.items():
        if widths[part] != width:
            what = "text" if part == TEXT else "a pooled vector of text"
            raise UserError(
                f"the U-Net of {weights} takes {what} of width {width}; data.text_encoder gives {widths[part]}: "
                f"choose the text encoder that {FAMILIES[family].title} was trained with"
            )
