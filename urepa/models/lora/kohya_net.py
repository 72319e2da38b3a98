"""A U-Net's low-rank adapters as files in kohya-ss's layout, which ComfyUI and WebUIs also read.

A module's name is `lora_unet_` followed by its path with underscores. sd-scripts trains SD-1.5 with diffusers' U-Net,
and SDXL with a U-Net of its own that has Stability's module names (kohya-ss/sd-scripts, `networks/lora.py` at commit
02298e3 and `library/sdxl_original_unet.py` at 005013d). ComfyUI accepts both kinds of names for both models
(comfyanonymous/ComfyUI, `comfy/lora.py` and `comfy/utils.py` at commit 00728eb).

Shapes: r rank, k side of a kernel. The tensors of a module are NAME.lora_down.weight [r,in] or [r,in,k,k],
NAME.lora_up.weight [out,r] or [out,r,1,1] and NAME.alpha []; the adapted weight is W + (α/r)·up·down.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.models.weight_files import read_safetensors, save_tensors

UNET, TEXT = "lora_unet_", "lora_te"  # `lora_te_`; SDXL's two encoders have `lora_te1_` and `lora_te2_`
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
INNER = {"resnets": 0, "attentions": 1}
BLOCK = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")
ADAPTER = "default"  # peft's name for a single adapter


def write_kohya_lora(unet: Any, file: Path) -> None:
    """Writes the adapters of diffusers' U-Net in this layout."""
    save_tensors(kohya_tensors(unet), file)


def kohya_tensors(unet: Any) -> dict[str, Tensor]:
    """The adapters of diffusers' U-Net by the names of this layout: Stability's for a U-Net like SDXL's, with sizes and
    crops among its conditions, and diffusers' for others. Each module has its α, as α may differ from r."""
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {path: module for path, module in unet.named_modules() if isinstance(module, LoraLayer)}
    all_names = names_of([path for path, _ in _layers(unet)], unet.config.layers_per_block)
    is_sdxl = unet.config.addition_embed_type == "text_time"
    tensors: dict[str, Tensor] = {}
    for path, module in adapted.items():
        name = all_names[path][1] if is_sdxl else all_names[path][0]
        assert name is not None, "adapters are in blocks"
        tensors[f"{name}.{DOWN}"] = module.lora_A[ADAPTER].weight
        tensors[f"{name}.{UP}"] = module.lora_B[ADAPTER].weight
        tensors[f"{name}.{ALPHA}"] = torch.tensor(_alpha(module))
    return tensors


def _alpha(module: Any) -> float:
    """α in this layout, in which the scale is α/r. For rank-stabilised adapters, whose scale is α/√r, it is α·√r."""
    rank, alpha = module.r[ADAPTER], float(module.lora_alpha[ADAPTER])
    return alpha * rank**0.5 if module.use_rslora.get(ADAPTER, False) else alpha


def is_kohya_lora(file: Path) -> bool:
    """Whether the file has names of this layout; False for a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return any(name.startswith((UNET, TEXT)) for name in opened.keys())  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError):
        return False


def load_kohya_lora(unet: Any, file: Path) -> None:
    """Adds the adapters in a file of this layout to a U-Net; both kinds of names are accepted. Raises UserError if the
    file adapts the text encoder too, is not a plain LoRA, or has modules that do not fit the U-Net."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in read_safetensors(file).items():
        module, _, part = name.partition(".")
        modules.setdefault(module, {})[part] = value
    if any(name.startswith(TEXT) for name in modules):
        raise UserError(
            f"{file} adapts the text encoder too ({TEXT}...), and the track's prompts were embedded without that; give "
            f"a LoRA of the U-Net alone"
        )
    layers = dict(_layers(unet))
    places = {
        name: path
        for path, both in names_of(list(layers), unet.config.layers_per_block).items()
        for name in both
        if name is not None
    }
    lost = [name for name, parts in modules.items() if name not in places or not _fits(layers[places[name]], parts)]
    if lost:
        raise UserError(
            f"{file} does not fit this U-Net: of its {len(modules)} modules {len(lost)} have no place as a plain LoRA "
            f"(the first: {lost[0]} with {', '.join(modules[lost[0]])})"
        )
    _add(unet, {places[name]: parts for name, parts in modules.items()})


def _layers(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that can have an adapter, with their paths; of a layer that has one, the base layer."""
    for path, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in path:
            yield path.removesuffix(".base_layer"), module


def _fits(layer: nn.Module, parts: dict[str, Tensor]) -> bool:
    """Whether these are a down and an up projection of the layer's shape, with or without an α."""
    if not {DOWN, UP} <= parts.keys() <= {DOWN, UP, ALPHA}:
        return False
    down, up, rank = parts[DOWN], parts[UP], len(parts[DOWN])
    if isinstance(layer, nn.Linear):
        return down.shape == (rank, layer.in_features) and up.shape == (layer.out_features, rank)
    assert isinstance(layer, nn.Conv2d)
    return down.shape == (rank, layer.in_channels, *layer.kernel_size) and up.shape == (layer.out_channels, rank, 1, 1)


@torch.no_grad()
def _add(unet: Any, modules: dict[str, dict[str, Tensor]]) -> None:
    """Adds adapters with these values at these paths, in fp32. A missing α is the rank, as in sd-scripts."""
    from peft import LoraConfig

    ranks = {path: len(parts[DOWN]) for path, parts in modules.items()}
    alphas = {path: float(parts[ALPHA]) if ALPHA in parts else float(ranks[path]) for path, parts in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by the rank, so a float is allowed
        rank_pattern={path: r for path, r in ranks.items() if r != rank},
        alpha_pattern={path: a for path, a in alphas.items() if a != alpha},
        target_modules=list(modules),
        bias="none",
    )
    unet.add_adapter(config, adapter_name=ADAPTER)
    for path, parts in modules.items():
        layer = unet.get_submodule(path)
        for adapter, part in ((layer.lora_A[ADAPTER], DOWN), (layer.lora_B[ADAPTER], UP)):
            adapter.weight.data = parts[part].float().clone()


# --- names --------------------------------------------------------------------------------------------------


def kohya_name(path: str) -> str:
    """A module's name in this layout, from its path in either kind of U-Net."""
    return UNET + path.replace(".", "_")


def stability_path(path: str, layers_per_block: int, attending: Collection[int]) -> str | None:
    """The path in Stability's U-Net of a module of diffusers' U-Net; None for modules outside the blocks.

    Args:
        path: the module's path, such as `mid_block.attentions.0.proj_in`.
        layers_per_block: the U-Net's setting.
        attending: the indices of its up blocks that have attention.
    """
    found = BLOCK.fullmatch(path)
    if found is None:
        return None
    side, block, kind, index, rest = found.groups()
    inside = RESNET.get(rest, rest) if kind == "resnets" else rest
    if side is None:
        return f"middle_block.{MIDDLE[f'{kind}.{index}']}.{inside}"
    first = int(block) * (layers_per_block + 1)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{1 + first + layers_per_block}.0.op"
        return f"input_blocks.{1 + first + int(index)}.{INNER[kind]}.{inside}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers_per_block}.{2 if int(block) in attending else 1}.{inside}"
    return f"output_blocks.{first + int(index)}.{INNER[kind]}.{inside}"


def names_of(paths: Collection[str], layers_per_block: int) -> Mapping[str, tuple[str, str | None]]:
    """The two names of each module, by its path: the diffusers name, used for SD-1.5, and the Stability name, used for
    SDXL (None if it has none)."""
    attending = {int(path.split(".")[1]) for path in paths if re.match(r"up_blocks\.\d+\.attentions\.", path)}
    stability = {path: stability_path(path, layers_per_block, attending) for path in paths}
    return {path: (kohya_name(path), None if own is None else kohya_name(own)) for path, own in stability.items()}
