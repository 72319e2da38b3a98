"""Meta's DINOv3 files (github.com/facebookresearch/dinov3), converted to transformers' parameter names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.teachers.dino.meta_dinov2 import depth, heads

PERIODS, QKV_MASK = "rope_embed.periods", "attn.qkv.bias_mask"
TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
}
IN_BLOCK = {
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.up_proj",
    "mlp.w3": "mlp.down_proj",
}
OF_TRAINING = "local_cls_norm."  # in some files; not used for images at full size


def read(state: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """A network with the file's architecture, and the file's weights by the network's parameter names. Its rotary
    periods come from the file, where they may be rounded, as in Meta's code; transformers would recompute them."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    gated = "blocks.0.mlp.w1.weight" in state
    hidden = state.get(f"blocks.0.mlp.{'w1' if gated else 'fc1'}.weight", torch.empty(1)).shape[0]
    bias, masked = "blocks.0.attn.qkv.bias" in state, f"blocks.0.{QKV_MASK}" in state
    network = DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=width,
            num_hidden_layers=depth(state),
            num_attention_heads=heads(width, 4 * len(state[PERIODS])),  # a head is four times as wide as it has periods
            intermediate_size=hidden,
            patch_size=patch,
            num_register_tokens=state["storage_tokens"].shape[1] if "storage_tokens" in state else 0,
            query_bias=bias,
            key_bias=bias and not masked,
            value_bias=bias,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
            layer_norm_eps=1e-5,
        )
    )
    inv_freq = network.rope_embeddings.inv_freq
    if inv_freq.shape == state[PERIODS].shape:  # otherwise the weights' shapes differ too, which is reported later
        inv_freq.copy_(1 / state[PERIODS].float())
    return network, rename_keys(state)


def rename_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames Meta's parameters to transformers' names, splits the fused projection, and leaves out the keys' bias if
    the file masks it. Unknown names are kept."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == PERIODS or name.startswith(OF_TRAINING):
            continue
        if not name.startswith("blocks."):
            out[TOP.get(name, name)] = tensor
            continue
        _, index, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        layer = f"model.layer.{index}."
        if rest == QKV_MASK:
            _require_mask(name, tensor)
        elif part == "attn.qkv":
            masked = kind == "bias" and f"blocks.{index}.{QKV_MASK}" in state
            for label, piece in zip("qkv", tensor.chunk(3), strict=True):
                if not (masked and label == "k"):
                    out[f"{layer}attention.{label}_proj.{kind}"] = piece
        elif rest in IN_BLOCK:
            out[layer + IN_BLOCK[rest]] = tensor
        else:
            out[f"{layer}{IN_BLOCK.get(part, part)}.{kind}"] = tensor
    out[TOP["mask_token"]] = state["mask_token"].unsqueeze(1)
    return out


def _require_mask(name: str, mask: Tensor) -> None:
    """Raises UserError unless the mask covers exactly the keys' bias, as in DINOv3."""
    queries, keys, values = mask.chunk(3)
    if keys.any() or not queries.eq(1).all() or not values.eq(1).all():
        raise UserError(f"{name} of teacher.model masks something else than the keys' bias, which is not DINOv3's")
