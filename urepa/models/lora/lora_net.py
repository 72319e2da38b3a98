"""Low-rank adapters: added to a backbone through peft, and as files for diffusers' pipelines.

W' = W + (α/r)·B·A (Hu et al. 2022, arXiv 2106.09685, eq. 3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from urepa.core.errors import UserError


def add_lora(backbone: nn.Module, rank: int, alpha: int | None, dropout: float, targets: str, blocks: str) -> None:
    """Freezes the backbone and adds adapters through peft, in place.

    Args:
        rank: r, at least 1. alpha: α; None means r, so that ranks compare at scale 1.
        dropout: in [0,1). targets, blocks: which layers of which blocks; the backbone knows them by name.

    On SD-1.5 at r = 8 with attention and mid: 155,648 parameters in 16 tensors; attention_conv adds the
    middle's four 3x3 convolutions, 409,600. On SiT-B all attention at r = 8 is 442,368.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UserError(f"lora.rank={rank}: give 1 or more; to train the whole backbone, lora=none")
    adapted: Any = backbone
    backbone.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=adapted.lora_modules(targets, blocks),
        bias="none",
    )
    adapted.add_adapter(config)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft follows the base's dtype; adapters stay in fp32


def load_pipeline_lora(unet: Any, file: Path) -> None:
    """A LoRA file for diffusers' pipelines on top of a U-Net's weights, by diffusers' own reading of its formats.
    UserError where the file is none, is for more than the U-Net, or does not fit it: diffusers would warn at most."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict
    from safetensors import SafetensorError

    try:
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(file), use_safetensors=True, return_lora_metadata=True
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} does not load as a LoRA: {str(error).splitlines()[0]}") from error
    if not any("lora" in name for name in state):
        raise UserError(f"{file} holds no LoRA; give a pytorch_lora_weights.safetensors, or a whole U-Net's folder")
    if any(name.startswith("text_encoder") for name in state):
        raise UserError(
            f"{file} adapts the text encoder too, and the track's prompts were embedded without that; give a LoRA of "
            "the U-Net alone"
        )
    if not any(name.startswith("unet.") for name in state):  # as a U-Net alone writes it
        state = {f"unet.{name}": value for name, value in state.items()}
        metadata = None if metadata is None else {f"unet.{key}": value for key, value in metadata.items()}
    try:
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{file} does not fit this U-Net: {' '.join(str(error).split())[:200]}") from error
    (name,) = unet.peft_config
    loaded = get_peft_model_state_dict(unet, adapter_name=name)
    if len(loaded) != len(state):
        raise UserError(f"{file} does not fit this U-Net: of its {len(state)} weights {len(loaded)} have a place")


def write_pipeline_lora(unet: Any, file: Path) -> None:
    """As `pipe.load_lora_weights` reads it. The metadata carry α, without which α ≠ r would be lost."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    StableDiffusionPipeline.save_lora_weights(
        file.parent,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        weight_name=file.name,
        safe_serialization=True,
    )
