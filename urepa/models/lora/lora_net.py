"""Low-rank adapters: added to a backbone with peft, and read and written as files for diffusers' pipelines.

W' = W + (α/r)·B·A (Hu et al. 2022, arXiv 2106.09685, eq. 3); rank-stabilised LoRA has α/√r instead
(Kalajdzievski 2023, arXiv 2312.03732), and DoRA has trained row norms m, m·W'/‖W'‖ (Liu et al. 2024, arXiv 2402.09353).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from urepa.core.errors import UserError


def add_lora(
    backbone: nn.Module,
    rank: int,
    alpha: int | None,
    dropout: float,
    targets: str,
    blocks: str,
    *,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> None:
    """Freezes the backbone and adds adapters with peft, in place.

    Args:
        rank: r, at least 1. alpha: α; None means r, so that ranks compare at scale 1.
        dropout: in [0,1). targets, blocks: which layers of which blocks; the backbone gives their names.
        use_rslora: the scale is α/√r. use_dora: the norms of the weights' rows train too.

    At r = 8 with attention and mid on SD-1.5: 155,648 parameters in 16 tensors; attention_conv adds the middle's four
    3x3 convolutions, 409,600. On SDXL, whose middle has ten transformer blocks: 1,761,280. On SiT-B all attention at
    r = 8 is 442,368.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UserError(f"lora.rank={rank}: give 1 or more; to train the whole backbone, lora=none")
    adapted: Any = backbone
    backbone.requires_grad_(False)
    names = adapted.lora_modules(targets, blocks)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=names,
        bias="none",
        use_rslora=use_rslora,
        use_dora=use_dora,
    )
    with _in_fp32(backbone, names):
        adapted.add_adapter(config)


@contextmanager
def _in_fp32(backbone: nn.Module, names: str) -> Iterator[None]:
    """Within this context the layers matched by the regular expression `names` are in fp32. peft gives adapters the
    data type of the adapted layers, and adapters must be in fp32 even if the frozen weights are not: in bf16 their
    initial values would be rounded. The expression may match the end of a module's name."""
    layers = [m for name, m in backbone.named_modules() if any(re.fullmatch(names, end) for end in _ends(name))]
    held = {p: p.dtype for layer in layers for p in layer.parameters() if p.dtype != torch.float32}
    for parameter in held:
        parameter.data = parameter.data.float()
    yield
    for parameter, dtype in held.items():
        parameter.data = parameter.data.to(dtype)  # the same values: fp32 represents all of them
    assert all(p.dtype == torch.float32 for p in backbone.parameters() if p.requires_grad), "adapters are in fp32"


def _ends(name: str) -> list[str]:
    """a.b.c, b.c and c."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def load_pipeline_lora(unet: Any, file: Path, loader: str) -> None:
    """Adds the adapters in a LoRA file for a diffusers pipeline to a U-Net, read by diffusers' own loader. Raises
    UserError if the file is not a LoRA, is not for the U-Net alone, or does not fit it: diffusers would only print a
    warning.

    Args:
        loader: the base class of the pipeline in diffusers.loaders.
    """
    from diffusers import loaders
    from peft.utils import get_peft_model_state_dict
    from safetensors import SafetensorError

    reader = getattr(loaders, loader)
    # with this the loader numbers the blocks in files of other programs
    known = {"unet_config": unet.config} if reader is loaders.StableDiffusionXLLoraLoaderMixin else {}
    try:
        state, alphas, metadata = reader.lora_state_dict(
            str(file), use_safetensors=True, return_lora_metadata=True, **known
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} does not load as a LoRA: {str(error).splitlines()[0]}") from error
    if not any("lora" in name for name in state):
        raise UserError(f"{file} is not a LoRA; give a pytorch_lora_weights.safetensors, or a whole U-Net's folder")
    if any(name.startswith("text_encoder") for name in state):
        raise UserError(
            f"{file} adapts the text encoder too, and the track's prompts were embedded without that; give a LoRA of "
            "the U-Net alone"
        )
    if not any(name.startswith("unet.") for name in state):  # a file written by a U-Net without a pipeline
        state = {f"unet.{name}": value for name, value in state.items()}
        metadata = None if metadata is None else {f"unet.{key}": value for key, value in metadata.items()}
    try:
        reader.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not fit this U-Net: {' '.join(str(error).split())[:200]}") from error
    (name,) = unet.peft_config
    loaded = get_peft_model_state_dict(unet, adapter_name=name)
    if len(loaded) != len(state):
        raise UserError(f"{file} does not fit this U-Net: only {len(loaded)} of its {len(state)} weights have a place")


def write_pipeline_lora(unet: Any, file: Path, loader: str) -> None:
    """Writes a file for `load_lora_weights` of a diffusers pipeline whose base class in diffusers.loaders is `loader`.
    The metadata have α, which may differ from r, and whether the adapters are rank-stabilised or DoRA's."""
    from diffusers import loaders
    from peft.utils import get_peft_model_state_dict

    getattr(loaders, loader).save_lora_weights(
        file.parent,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        weight_name=file.name,
        safe_serialization=True,
    )
