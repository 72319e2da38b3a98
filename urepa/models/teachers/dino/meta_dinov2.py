"""Meta's DINOv2 files (github.com/facebookresearch/dinov2), converted to transformers' parameter names."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from urepa.core.errors import UserError

HEAD_DIM = 64
TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
IN_BLOCK = {
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w3": "mlp.down_proj",
}
FUSED = {  # a fused matrix: the layers whose rows it contains
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
}


def read(state: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """A network with the file's architecture, and the file's weights by the network's parameter names."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    width, patch = state["pos_embed"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth(state),
        "num_attention_heads": heads(width, HEAD_DIM),
        "image_size": patch * math.isqrt(state["pos_embed"].shape[1] - 1),
        "patch_size": patch,
        "use_swiglu_ffn": "blocks.0.mlp.w12.weight" in state,
    }
    if "register_tokens" in state:
        registers = state["register_tokens"].shape[1]
        network: Any = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, num_register_tokens=registers))
    else:
        network = Dinov2Model(Dinov2Config(**shape))
    return network, rename_keys(state)


def heads(width: int, head_dim: int) -> int:
    """The number of attention heads in a block; 1 in a network narrower than a head."""
    if width > head_dim and width % head_dim:
        raise UserError(f"teacher.model: its width of {width} is not a multiple of {head_dim}, the width of a head")
    return max(width // head_dim, 1)


def depth(state: dict[str, Tensor]) -> int:
    """The number of blocks."""
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def rename_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames Meta's parameters to transformers' names and splits fused projections. Unknown names are kept."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            out[TOP.get(name, name)] = tensor
            continue
        _, index, rest = name.split(".", 2)
        layer = f"encoder.layer.{index}."
        part, _, kind = rest.rpartition(".")
        if part in FUSED:
            for label, piece in zip(FUSED[part], tensor.chunk(len(FUSED[part])), strict=True):
                out[f"{layer}{label}.{kind}"] = piece
        elif rest in IN_BLOCK:
            out[layer + IN_BLOCK[rest]] = tensor
        else:
            out[f"{layer}{IN_BLOCK.get(part, part)}.{kind}"] = tensor
    return out
