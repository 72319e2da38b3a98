"""Low-rank adapters of a U-Net as files in kohya-ss's layout (`urepa.models.lora.kohya_names`).

Shapes: r rank, k side of a kernel. The adapted weight is W + (α/r)·up·down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.models.lora.kohya_names import ALPHA, DOWN, TEXT, UNET, UP, names_of
from urepa.models.weight_files import read_safetensors, save_tensors

ADAPTER = "default"


def write_kohya_lora(unet: Any, file: Path) -> None:
    """The adapters of diffusers' U-Net in this layout."""
    save_tensors(kohya_tensors(unet), file)


def kohya_tensors(unet: Any) -> dict[str, Tensor]:
    """The adapters of diffusers' U-Net by the names of this layout: Stability's for a U-Net of SDXL's kind, with sizes
    and crops among its conditions, diffusers' for others. Each module has its α, so that α ≠ r is not lost."""
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
        tensors[f"{name}.{ALPHA}"] = torch.tensor(float(module.lora_alpha[ADAPTER]))
    return tensors


def is_kohya_lora(file: Path) -> bool:
    """Has it a name of this layout? A file that cannot be read has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return any(name.startswith((UNET, TEXT)) for name in opened.keys())  # noqa: SIM118  it is no mapping
    except (OSError, SafetensorError):
        return False


def load_kohya_lora(unet: Any, file: Path) -> None:
    """Such a file on top of a U-Net's weights, by names of either kind. UserError where it adapts the text encoder too,
    where it is no plain LoRA, or where the U-Net has no place for some of it."""
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
    """What can have an adapter, by its path; of one that has, the layer below it."""
    for path, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in path:
            yield path.removesuffix(".base_layer"), module


def _fits(layer: nn.Module, parts: dict[str, Tensor]) -> bool:
    """Are these a down and an up projection of the layer's shape, with at most an α beside them?"""
    if not {DOWN, UP} <= parts.keys() <= {DOWN, UP, ALPHA}:
        return False
    down, up, rank = parts[DOWN], parts[UP], len(parts[DOWN])
    if isinstance(layer, nn.Linear):
        return down.shape == (rank, layer.in_features) and up.shape == (layer.out_features, rank)
    assert isinstance(layer, nn.Conv2d)
    return down.shape == (rank, layer.in_channels, *layer.kernel_size) and up.shape == (layer.out_channels, rank, 1, 1)


@torch.no_grad()
def _add(unet: Any, modules: dict[str, dict[str, Tensor]]) -> None:
    """Adapters of these values at these paths, in fp32. Without an α it is the rank, as sd-scripts has it."""
    from peft import LoraConfig

    ranks = {path: len(parts[DOWN]) for path, parts in modules.items()}
    alphas = {path: float(parts[ALPHA]) if ALPHA in parts else float(ranks[path]) for path, parts in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides by the rank, whatever number it is
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
