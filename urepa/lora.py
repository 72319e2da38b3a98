"""Which weights of the backbone train: all of them, or low-rank adapters beside frozen ones."""

from __future__ import annotations

from torch import nn


def no_lora(backbone: nn.Module) -> str:
    """The whole backbone trains. Returns the name of its optimiser group."""
    backbone.requires_grad_(True)
    return "backbone"
