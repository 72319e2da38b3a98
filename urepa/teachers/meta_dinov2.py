"""Meta's own DINOv2 files (`dinov2_vitl14_pretrain.pth`): the same network, other names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.errors import UserError

PATCH, HEAD_DIM = 14, 64
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


def load_meta_dinov2(path: Path) -> Any:
    """A transformers model with the file's weights; the architecture is read off their shapes."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    if not path.is_file():
        raise UserError(f"teacher.model={path} does not exist")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "blocks.0.attn.qkv.weight" not in state:
        raise UserError(f"teacher.model={path} is not a DINOv2 state dict: it has no blocks.0.attn.qkv.weight")
    width = state["pos_embed"].shape[-1]
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": max(width // HEAD_DIM, 1),
        "image_size": PATCH * math.isqrt(state["pos_embed"].shape[1] - 1),
        "patch_size": PATCH,
        "use_swiglu_ffn": "blocks.0.mlp.w12.weight" in state,
    }
    model: Any
    if "register_tokens" in state:
        registers = state["register_tokens"].shape[1]
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, num_register_tokens=registers))
    else:
        model = Dinov2Model(Dinov2Config(**shape))
    model.load_state_dict(renamed(state))
    return model


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's names to transformers'; fused projections are split."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            out[TOP[name]] = tensor
            continue
        _, index, rest = name.split(".", 2)
        layer = f"encoder.layer.{index}."
        part, _, kind = rest.rpartition(".")
        if part == "attn.qkv":
            for label, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{layer}attention.{label}_proj.{kind}"] = piece
        elif part == "mlp.w12":
            for label, piece in zip(("gate", "up"), tensor.chunk(2), strict=True):
                out[f"{layer}mlp.{label}_proj.{kind}"] = piece
        elif rest in IN_BLOCK:
            out[layer + IN_BLOCK[rest]] = tensor
        else:
            out[f"{layer}{IN_BLOCK.get(part, part)}.{kind}"] = tensor
    return out
