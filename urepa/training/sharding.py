"""trainer.sharding=fsdp2: every process holds a part of all weights, gradients, optimiser state and averages (FSDP2,
torch's `fully_shard`), and gathers the weights of one block at a time.

accelerate's FullyShardedDataParallelPlugin calls the same function but is not used: on CPUs accelerate 1.15 ignores it,
with bf16 it casts the trained weights to bf16 instead of using autocast, and it prepares an optimiser together with the
model.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.shards import whole
from urepa.method.training_step import AlignedModel

FSDP2 = "fsdp2"


def check_sharding(trainer: dict[str, Any], world: int) -> None:
    """Raises UserError if sharding would have no effect."""
    if trainer["sharding"] is not None and world == 1:
        raise UserError(
            f"trainer.sharding={trainer['sharding']} divides the weights among several processes, and this run has "
            "one: start it with torchrun or on several GPUs, or give trainer.sharding=null"
        )


class Shards:
    """A model that trains in shards, and a copy of it for all that is not training.

    Evaluations run on one rank, and ranks validate different numbers of groups. A sharded forward pass needs all ranks
    at the same time, so both use `model`, which has no memory for its weights except in `filled`.
    """

    def __init__(self, model: AlignedModel, device: torch.device) -> None:
        """Shards `model` in place: by the backbone's repeated blocks (`regions`), and the rest as one unit. Its
        parameters keep their names and become DTensors on `device`. Raises UserError if the backbone names no block."""
        backbone: Any = model.backbone
        blocks = [module for module in backbone.modules() if type(module).__name__ in backbone.regions]
        if not blocks:
            raise UserError(
                f"trainer.sharding={FSDP2} divides a backbone by its repeated blocks, and this one names none "
                "(`regions`); drop it"
            )
        if model.averaged_taps or model.frozen_taps:
            others = "the averaged" if model.averaged_taps else "an earlier run's"
            raise UserError(
                f"trainer.sharding={FSDP2}: this loss compares with states at {others} weights, which a sharded "
                "backbone cannot take; drop trainer.sharding, or choose another loss"
            )
        from torch.distributed.device_mesh import init_device_mesh  # imported where they are used: 3 s
        from torch.distributed.fsdp import fully_shard

        self._training = model
        self.model = _without_weights(model, device)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    @contextlib.contextmanager
    def filled(self, averages: Mapping[str, Tensor], keep: bool) -> Iterator[None]:
        """Within the block, `model` has the whole weights on the ranks that `keep` them: `averages`, and the current
        ones of all other parameters. All ranks enter together."""
        for name, parameter in self._training.named_parameters():
            value = whole(averages.get(name, parameter))
            if keep:
                _set(self.model, name, value)
        try:
            yield
        finally:
            for name, parameter in self._training.named_parameters():
                _set(self.model, name, torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))


def _without_weights(model: AlignedModel, device: torch.device) -> AlignedModel:
    """A copy whose parameters are on the meta device; buffers are copied to `device`."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return copied


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, nn.Parameter(value.detach(), requires_grad=False))
