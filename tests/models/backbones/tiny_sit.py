"""A SiT small enough to be computed by its formulas."""

from __future__ import annotations

from typing import Any

import torch

from urepa.models.backbones.sit import SiT
from urepa.models.backbones.sit_net import SiTNetwork

SHAPE = (3, 4, 6)
SMALL: dict[str, Any] = {
    "weights": "random",
    "patch": 2,
    "depth": 3,
    "width": 16,
    "heads": 2,
    "qk_norm": False,
    "positions": "sincos",
}


def small(**changes: Any) -> SiTNetwork:
    """All weights differ from their initial values, with which the blocks are the identity."""
    torch.manual_seed(0)
    backbone = SiT(**(SMALL | changes)).build(latent_shape=SHAPE, num_classes=5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.3)
    return backbone
