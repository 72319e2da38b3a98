"""Weights as loaders hand them over."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def own_memory(module: nn.Module) -> nn.Module:
    """Moves weights from a file's mapping to memory of their own, in place. There they begin at multiples of 64
    bytes; in a safetensors file at multiples of 8, and CPU kernels round by where weights lie: the same run would
    differ between one process and several, for which diffusers loads them in another way."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module
