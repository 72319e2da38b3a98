"""Files of plain vision transformers in timm's layout, converted to transformers' parameter names: Meta's DINO
(`dino_vitbase16_pretrain.pth`) and MoCo-v3 (`vit-b-300ep.pth.tar`).

Read of MoCo-v3: `vits.py` in copies of its code (12 heads for S and B, an epsilon of 1e-6, fixed positions that are
stored), and how REPA's code reads its files (`fix_mocov3_state_dict`: the prefix `module.base_encoder.`, the head left
out, four misspelt names of ViT-L). The 16 heads of its ViT-L and DINO's layout are from memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.teachers.dino.meta_dinov2 import depth, heads
from urepa.models.teachers.vit_sizes import check_file
from urepa.models.weight_files import read_torch

State = dict[str, Tensor]
FAMILIES = ("dino", "mocov3")
PREFIX = "module.base_encoder."  # of MoCo-v3's names
MISSPELT = {  # in MoCo-v3's ViT-L
    "blocks.13.norm13.": "blocks.13.norm1.",
    "blocks.13.mlp.fc13.": "blocks.13.mlp.fc1.",
    "blocks.14.norm14.": "blocks.14.norm2.",
    "blocks.14.mlp.fc14.": "blocks.14.mlp.fc2.",
}
TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
IN_BLOCK = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
FUSED = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


def load_plain(path: Path, family: str) -> Any:
    """A `ViTModel` with the file's weights; the architecture is inferred from their shapes. Raises UserError if the
    file is missing, damaged or of another layout."""
    check_file(str(path))
    state = _state(read_torch(path), path, family)
    width, patch = state["pos_embed"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    of_moco = 16 if width == 1024 else 12
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth(state),
        num_attention_heads=heads(width, 64) if family == "dino" else of_moco,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=patch * math.isqrt(state["pos_embed"].shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    network = ViTModel(config, add_pooling_layer=False)
    weights, own = _renamed(state), network.state_dict()
    odd = sorted(own.keys() ^ weights.keys()) + [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if odd:
        raise UserError(
            f"teacher.model={path} is not {family} as it is published: {len(odd)} of its weights differ by name or "
            f"shape (first: {odd[0]}); give a file of theirs, a hub id or a local folder"
        )
    network.load_state_dict(weights)
    return network


def _state(stored: Any, path: Path, family: str) -> State:
    """The encoder's weights by timm's names, without a head."""
    if family == "mocov3" and isinstance(stored, Mapping) and isinstance(stored.get("state_dict"), Mapping):
        named = {k.removeprefix(PREFIX): v for k, v in stored["state_dict"].items() if str(k).startswith(PREFIX)}
    else:
        named = dict(stored) if family == "dino" and isinstance(stored, Mapping) else {}
    state: State = {}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or name.startswith("head."):
            continue
        wrong = next((part for part in MISSPELT if name.startswith(part)), None)
        state[name if wrong is None else MISSPELT[wrong] + name.removeprefix(wrong)] = tensor
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
    lacking = next((name for name in needed if name not in state), None)
    if lacking is not None:
        raise UserError(f"teacher.model={path} is not a file of {family} as it is published: it lacks {lacking}")
    return state


def _renamed(state: State) -> State:
    """The weights by transformers' names, with the fused projections split. Unknown names are kept."""
    out: State = {}
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            out[TOP.get(name, name)] = tensor
            continue
        _, index, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        if part == "attn.qkv":
            for label, piece in zip(FUSED, tensor.chunk(3), strict=True):
                out[f"layers.{index}.{label}.{kind}"] = piece
        else:
            out[f"layers.{index}.{IN_BLOCK.get(part, part)}.{kind}"] = tensor
    return out
