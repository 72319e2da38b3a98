"""The schema of `python -m urepa.train_encoder`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from urepa.core.declared_keys import LAST_SEED, SIZE, TINY, part, setting


@dataclass
class TrainEncoder:
    epochs: int = setting("passes over the training images", 20, ge=1, le=SIZE)
    seed: int = setting("seed of initial weights, order and masks", 0, ge=0, le=LAST_SEED)
    patch_size: int = setting("side of a patch in pixels; it divides the images' side", 4, ge=1, le=SIZE)
    width: int = setting("width of the encoder, a multiple of 64: its attention heads have 64", 192, ge=1, le=SIZE)
    depth: int = setting("blocks of the encoder", 6, ge=1, le=SIZE)
    mask_ratio: float = setting("share of each image's patches that is masked", 0.75, ge=0, le=1)
    learning_rate: float = setting("of AdamW, after the warm-up", 1e-3, ge=TINY, le=1)
    out: str | None = setting("the file; null: DATA.ROOT/own_mae.safetensors", None)
    teacher: Any = part("comes with the track; must not be given, because no token is read")
    data: Any = part("the small track whose training images it learns")
