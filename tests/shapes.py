"""Photographs of several shapes as class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TURNED, QUARTER_TURN = 0x0112, 6  # EXIF's orientation
SHAPES = {"square": (20, 20), "lying": (18, 36), "standing": (40, 19)}  # rows and columns


def write_shapes(root: Path, of_each: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> Path:
    """Writes ROOT/{cat,dog}/SHAPE_NN.png: a number of images of each shape in either class, smooth and all different.
    The last of each shape is stored rotated by 90 degrees, with the EXIF tag that rotates it back."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for shape, (height, width) in shapes.items():
            for i in range(of_each):
                small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                image, exif = small.resize((width, height), Image.Resampling.BICUBIC), Image.Exif()
                if i == of_each - 1:
                    image, exif[TURNED] = image.transpose(Image.Transpose.ROTATE_90), QUARTER_TURN
                image.save(root / name / f"{shape}_{i:02d}.png", exif=exif)
    return root
