"""Checks of the backbones' sizes and taps, without torch, so that errors are raised before torch loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from urepa.core.descriptions import BackboneFacts, join_with_and, shape
from urepa.core.errors import UserError, did_you_mean

RANDOM = "random"  # the value of backbone.weights for random weights
EXPORTED = "model.safetensors"  # the file in a SiT's exported folder
LORA = "pytorch_lora_weights.safetensors"  # a LoRA in the layout of diffusers' pipelines
KOHYA = "lora_kohya.safetensors"  # a U-Net's LoRA for sd-scripts, ComfyUI and WebUIs
PEFT = ("adapter_config.json", "adapter_model.safetensors")  # peft's layout, where the family's pipeline loads no LoRA
TRAINED_ROWS = "embedding.safetensors"  # the trained condition embeddings of a U-Net
UNET_TAPS = ("mid", "enc_last", "dec_first")


def check_unet(block_out_channels: Sequence[int], attention: Sequence[bool], latent_shape: Sequence[int]) -> None:
    """Raises UserError if a tiny U-Net's widths, one per resolution, are inconsistent or do not fit the latent
    [C,H,W]."""
    _, height, width = latent_shape
    levels = len(block_out_channels)
    if len(attention) != levels:
        raise UserError(
            f"backbone.attention has {len(attention)} entries and backbone.block_out_channels {levels}; "
            "give one of each per resolution"
        )
    if levels == 0:
        raise UserError("tiny_unet cannot be built with block_out_channels=[]: give a width for each resolution")
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        raise UserError(
            f"backbone: {levels} resolutions halve the latent {levels - 1} times, but {height}x{width} is not "
            f"a multiple of {factor}; give fewer backbone.block_out_channels or another data.image_size"
        )
    if any(c % 32 for c in block_out_channels):
        raise UserError(f"backbone.block_out_channels={list(block_out_channels)}: each must be a multiple of 32")


def check_head_width(block_out_channels: Sequence[int], attention: Sequence[bool], head_dim: int) -> None:
    """Raises UserError if the head width does not divide the channels of a level with attention: diffusers would
    silently use another width."""
    attending = [*attention[:-1], True]  # the middle block always has attention, at the last width
    odd = [c for c, has_heads in zip(block_out_channels, attending, strict=False) if has_heads and c % head_dim]
    if odd:
        raise UserError(
            f"backbone.head_dim={head_dim} does not divide the {odd[0]} channels of a level with attention (of "
            f"backbone.block_out_channels={block_out_channels}); give a width that divides them all"
        )


def describe_unet_sizes(
    block_out_channels: Sequence[int],
    attention: Sequence[bool],
    layers_per_block: int,
    head_dim: int,
    facts: BackboneFacts,
) -> str:
    """A tiny U-Net's sizes, in sentences."""
    attending = [
        " or ".join(shape(n // 2**level for n in sides) for _, *sides in facts.latent_shapes or (facts.latent_shape,))
        for level, here in enumerate(attention)
        if here
    ]
    heads = f" Cross-attention, in heads {head_dim} wide, acts at {join_with_and(attending)}." if attending else ""
    return (
        f"Its {len(block_out_channels)} resolutions have {join_with_and(list(map(str, block_out_channels)))} channels, "
        f"and {layers_per_block} residual block(s) each on the way down.{heads}"
    )


def check_unet_tap(tap: str) -> None:
    """Raises UserError for a tap that a U-Net does not have."""
    if tap not in UNET_TAPS:
        near = did_you_mean(tap, UNET_TAPS)
        raise UserError(f"this backbone has no tap '{tap}'; it has {', '.join(UNET_TAPS)}{near}")


def unet_files(path: Path, missing: str) -> list[Path]:
    """The config.json and the weights of the U-Net in a folder, its own or a pipeline's."""
    return _module_files(path, "unet", missing)


def check_prompts(path: Path) -> None:
    """Raises UserError if the file of text embeddings is missing."""
    if not path.is_file():
        raise UserError(f"there are no prompt embeddings at {path}; make them with the track's other caches")


def check_sit(patch: int, width: int, heads: int, latent_shape: Sequence[int]) -> None:
    """Raises UserError if a SiT's sizes are inconsistent or do not fit the latent [C,H,W]."""
    _, height, columns = latent_shape
    if height % patch or columns % patch:
        raise UserError(
            f"backbone.patch={patch} does not divide the {height}x{columns} latent; give another one or another "
            "data.image_size"
        )
    if width % heads or width % 4:
        raise UserError(f"backbone.width={width}: give a multiple of 4 and of backbone.heads={heads}")


def check_route(route: Sequence[int], share: float, depth: int) -> None:
    """Raises UserError if blocks that tokens skip do not exist, or if one of the two settings has no effect."""
    if bool(route) != (share > 0):
        raise UserError(
            f"backbone.route={list(route)} and backbone.route_share={share:g} go together: give two blocks and a share "
            "of the tokens above 0, or neither"
        )
    if route and (len(route) != 2 or not 0 <= route[0] <= route[1] < depth):
        raise UserError(
            f"backbone.route={list(route)}: give the first and the last block that tokens skip, in order, of the "
            f"{depth} from 0 to {depth - 1}"
        )


def sit_block(tap: str, depth: int) -> int:
    """The index, below `depth`, of the block whose output is a SiT's tap `block_K`. Raises UserError for other taps."""
    names = [f"block_{k}" for k in range(depth)]
    if tap not in names:
        raise UserError(f"this backbone has no tap '{tap}'; it has {names[0]} to {names[-1]}; give a loss of one")
    return names.index(tap)


def check_transformer_adapters(targets: str, blocks: str) -> None:
    """Raises UserError for modules to adapt that only a U-Net has."""
    if (targets, blocks) != ("attention", "all"):
        raise UserError(
            f"lora.targets={targets} lora.blocks={blocks}: a transformer has neither a middle block nor "
            "convolutions to adapt; give lora=all_attention"
        )


def transformer_block(tap: str, blocks: int, usual: str | None = None) -> int:
    """The block, of so many, that a tap `block_K` of a published transformer follows. UserError for a tap that it has
    not."""
    names = [f"block_{k}" for k in range(blocks)]
    if tap not in names:
        often = "" if usual is None else f", of which {usual} is usual"
        raise UserError(f"this backbone has no tap '{tap}'; it has {names[0]} to {names[-1]}{often}; give loss.taps")
    return names.index(tap)


def check_guidance(guidance: float | None, guidance_embeds: bool) -> None:
    """UserError for a scale of guidance of a transformer that embeds none, or none of one that does."""
    if guidance_embeds is (guidance is None):
        have = "embeds a scale of guidance" if guidance_embeds else "embeds no scale of guidance"
        give = "a number, such as 3.5" if guidance_embeds else "null"
        raise UserError(f"backbone.guidance={guidance}: this model {have}; give {give}")


def transformer_files(path: Path, missing: str) -> list[Path]:
    """Configuration and weights of the transformer in a folder, its own or a pipeline's."""
    return _module_files(path, "transformer", missing)


def _module_files(path: Path, name: str, missing: str) -> list[Path]:
    for folder in (path / name, path):
        if (folder / "config.json").is_file():
            return [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    raise UserError(f"checkpoint={path} has {missing}: give the weights, or compose the backbone that they are of")
