"""Dense layers as SiT and REPA begin them."""

from __future__ import annotations

from torch import nn


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Xavier-uniform, its bias 0: what the published SiT and REPA do to every dense layer (SYSTEMS.md D)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
