"""Settings for speed that keep the mathematics: frozen weights in bf16, channels_last, attention kernels, compiled
blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.errors import UserError

SHAPES = 64  # compilations of a region, one per shape of its inputs: SD-1.5 needs about 20


class GroupNorm(nn.GroupNorm):
    """Normalises in the data type of its input. The kernel still accumulates in fp32; autocast would also write the
    result in fp32, which doubles the memory traffic up to the next convolution."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = (None if p is None else p.to(input.dtype) for p in (self.weight, self.bias))
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


class LayerNorm(nn.LayerNorm):
    """Normalises in the data type of its input, as `GroupNorm` above."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = (None if p is None else p.to(input.dtype) for p in (self.weight, self.bias))
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


IN_THEIR_INPUTS_TYPE: dict[type[nn.Module], type[nn.Module]] = {nn.GroupNorm: GroupNorm, nn.LayerNorm: LayerNorm}


def hold_frozen_in_bf16(backbone: nn.Module) -> None:
    """Stores frozen weights in bf16, so that autocast need not cast them at every step, and computes norms in their
    inputs' data type. Trainable weights and the norms' own weights stay in fp32. In place; parameters keep their
    names."""
    for module in backbone.modules():
        own = IN_THEIR_INPUTS_TYPE.get(type(module))
        if own is not None:
            module.__class__ = own  # the same parameters with another `forward`
            continue
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)


def channels_last(backbone: nn.Module) -> None:
    """Stores the convolutions' weights as NHWC, which activations follow. In place."""
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def attention(first: str | None, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A context in which attention tries the kernel `first` before the others (None: PyTorch's own order)."""
    if first is None:
        return contextlib.nullcontext
    if device.type != "cuda":
        raise UserError(f"trainer.attention={first} is a kernel for GPUs; leave it null on this machine")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    order = [backends[first], *(b for name, b in backends.items() if name != first), SDPBackend.MATH]
    return partial(sdpa_kernel, order, set_priority=True)


def compile_blocks(backbone: nn.Module) -> None:
    """Compiles each of the repeated blocks that a backbone names (`BackboneNetwork.regions`) on its own. The first step
    then takes a minute or two. In place."""
    regions: Any = backbone.regions
    torch._dynamo.config.recompile_limit = SHAPES
    for module in backbone.modules():
        if type(module).__name__ in regions:
            module.compile()
