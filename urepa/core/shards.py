"""Tensors of which every rank holds a part (torch's DTensor, made by FSDP2). For an ordinary tensor each function is
the identity, or copies.

DTensor is recognised by its attribute `placements`: importing its module takes a second or more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds only a part of it."""
    return hasattr(tensor, "placements")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on its device. All ranks call this together."""
    sharded: Any = tensor
    return sharded.detach().full_tensor() if is_sharded(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part, which shares the memory."""
    sharded: Any = tensor
    return sharded.detach().to_local() if is_sharded(tensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor of the CPU on the device of `like`, and sharded as it. Ranks do not communicate."""
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    target: Any = like
    return distribute_tensor(tensor.to(like.device), target.device_mesh, target.placements, src_data_rank=None)


def gathered(tensors: dict[str, dict[str, Tensor]], keep: bool) -> dict[str, dict[str, Tensor]]:
    """These tensors by part and name, sharded ones whole on the CPU; where not `keep`, without the sharded ones. One
    tensor at a time is whole on the device. All ranks call this together."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, own in tensors.items():
        found[part] = {}
        for name, tensor in own.items():
            value = whole(tensor)
            if keep or not is_sharded(tensor):
                found[part][name] = value.cpu() if is_sharded(tensor) else tensor
    return found


def copy_into(into: Tensor, tensor: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded."""
    with torch.no_grad():
        own_part(into).copy_(own_part(part_like(tensor, into)))
