"""The files in which Meta publishes DINOv2 and DINOv3 (`dinov2_vitl14_pretrain.pth`): transformers' networks with
other parameter names.

They are converted here because transformers' conversion scripts are not in its installed package, timm needs
torchvision, and torch.hub runs downloaded code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.teachers.dino import meta_dinov2, meta_dinov3
from urepa.models.teachers.vit_sizes import check_file
from urepa.models.weight_files import read_torch

State = dict[str, Tensor]
READERS: dict[str, Callable[[State], tuple[Any, State]]] = {  # by family: returns the network and its weights by name
    "dinov2": meta_dinov2.read,
    "dinov2_registers": meta_dinov2.read,
    "dinov3": meta_dinov3.read,
}


def load_meta(path: Path, family: str) -> Any:
    """A transformers model with the file's weights; the architecture is inferred from their shapes. Raises UserError if
    the file is missing, damaged, of another family, or of another network."""
    if family not in READERS:
        raise UserError(f"teacher.model={path}: for family={family} give a hub id or a local folder, not a .pth")
    check_file(str(path))
    state = _tensors(path)
    found = family_of(state)
    if found is None:
        raise UserError(
            f"teacher.model={path} is not a file of Meta's DINOv2 or DINOv3: it lacks {_missing_key(state)}"
        )
    if found != family:
        raise UserError(f"teacher.model={path} holds weights of the family {found}; give teacher.family={found}")
    network, weights = READERS[family](state)
    own = network.state_dict()
    odd = sorted(own.keys() ^ weights.keys()) + [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if odd:
        raise UserError(
            f"teacher.model={path} is not {family} as Meta publishes it: {len(odd)} of its weights differ by name or "
            f"shape (first: {odd[0]}); give a file of theirs, a hub id or a local folder"
        )
    network.load_state_dict(weights)
    return network


def family_of(state: State) -> str | None:
    """The family of a file, recognised by names that only its files have; None for another network."""
    if _missing_key(state) is not None:
        return None
    if "rope_embed.periods" in state:
        return "dinov3"
    return "dinov2_registers" if "register_tokens" in state else "dinov2"


def _missing_key(state: State) -> str | None:
    """The name of a tensor that all such files have and this one lacks; None if it has all."""
    if "pos_embed" not in state and "rope_embed.periods" not in state:
        return "both pos_embed and rope_embed.periods"
    needed = ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "cls_token", "mask_token")
    return next((name for name in needed if name not in state), None)


def _tensors(path: Path) -> State:
    try:
        stored = read_torch(path)
    except UserError as error:
        raise UserError(
            f"teacher.model={path} is not a complete torch file of weights alone; download it again"
        ) from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UserError(f"teacher.model={path} holds no weights by name; give the file as Meta publishes it")
    return stored
