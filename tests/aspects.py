"""Folders of small images of several aspects, and a run over them in two buckets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SQUARE, LYING = (64, 64), (32, 64)
MODEL = (
    *("backbone.block_out_channels=[32,32]", "backbone.attention=[false,true]", "backbone.cross_attention_dim=32"),
    *("head=irepa", "evaluation=none", "tracking=none"),
)
TEACHER = ("teacher=efficientnet_lite0_s16", "teacher.image_size=128", "teacher.grid=[8,8]")


def write_aspects(root: Path, squares: int, lying: int) -> Path:
    """Writes ROOT/{a,b}/*.png: in each class `squares` images of 70x70 pixels and the others of 40x80, all
    different."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(squares + lying):
            size = (70, 70) if i < squares else (40, 80)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{name}{i:03d}.png")
    return root


def bucketed(images: Path, root: Path, *more: str, buckets: str = "[[64,64],[32,64]]") -> list[str]:
    """Overrides for a run on such a folder, with its caches in `root`."""
    data = ["data=folder", f"data.images={images}", f"data.root={root}", f"data.buckets={buckets}"]
    held = ["data.validation_images=6", "data.test_images=4", "data.num_classes=2"]
    return [*data, *held, *MODEL, *TEACHER, "trainer.batch_size=4", "trainer.validation_group=2", *more]
