"""A FlexTok small enough to look at every register."""

from __future__ import annotations

from typing import Any

from urepa.core.part_names import IMAGE, KEEP

SHAPE, WIDTHS = (3, 4, 6), {IMAGE: 3, KEEP: 1}
PATCHES, REGISTERS, DEPTH = 6, 8, 3
SMALL: dict[str, Any] = {
    "weights": "random",
    "patch": 2,
    "registers": REGISTERS,
    "levels": [8, 8, 8, 5, 5, 5],
    "nested_dropout": "uniform",
    "encoder_depth": 2,
    "encoder_width": 16,
    "decoder_depth": DEPTH,
    "decoder_width": 24,
    "head_dim": 8,
    "mlp_ratio": 4.0,
    "norm_eps": 1e-6,
    "mask_positions": True,
    "gradient_checkpointing": False,
}
