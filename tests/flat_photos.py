"""A folder of photographs of three shapes without class folders, with captions; and overrides for a latent track over
it, with the small VAE and CLIP of `photos`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from urepa.core.types import Tokens

SHAPES = {"square": (100, 100), "lying": (90, 140), "standing": (150, 97)}  # rows and columns
BUCKETS = {"64x64": (64, 64), "48x80": (48, 80), "80x48": (80, 48)}  # of each shape, in this order
LENGTH = 12
EACH = 16  # images of each shape
CAPTIONS = {f"a {shape} {scene}" for shape in SHAPES for scene in "tf"} | {"it is t", "it is f", ""}


def write_flat(root: Path, of_each: int = EACH) -> Path:
    """Writes ROOT/SHAPE_NN.jpg: crops of two photographs; every third has a second caption."""
    from sklearn.datasets import load_sample_images

    rng, scenes = np.random.default_rng(0), load_sample_images().images
    root.mkdir(parents=True)
    for shape, (height, width) in SHAPES.items():
        for i in range(of_each):
            scene = scenes[i % 2]
            top, left = int(rng.integers(0, scene.shape[0] - height)), int(rng.integers(0, scene.shape[1] - width))
            name = f"{shape}_{i:02d}"
            Image.fromarray(scene[top : top + height, left : left + width]).save(root / f"{name}.jpg", quality=95)
            second = ["it is " + "tf"[i % 2]] if i % 3 == 0 else []
            (root / f"{name}.txt").write_text("\n".join([f"a {shape} {'tf'[i % 2]}", *second]) + "\n")
    return root


def captioned_latents(material: Path, images: Path, root: Path) -> list[str]:
    """Overrides for `urepa.preprocess` and for the data of a run."""
    text = [f"data.text_encoder.model={material / 'sd'}", "data.text_encoder.width=16"]
    data = [f"data.images={images}", f"data.root={root}", "data.val_images=8", "data.image_size=64"]
    data += [f"data.vae={material / 'sd'}", "data.latent_shape=[4,8,8]", f"data.text_encoder.length={LENGTH}"]
    return ["data=sd15_captions", "data.teacher_sees=images", *text, *data]


class MeanColours:
    """A teacher whose tokens are mean colours and a constant, at unit length; a square image has 8x8 tokens."""

    width, grid, image_size, is_local = 4, (8, 8), 64, True

    def grid_at(self, shape: Any, side: int) -> tuple[int, int]:
        return round(8 * shape[0] / side), round(8 * shape[1] / side)

    def weights_sha256(self) -> str:
        return "none"

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        return {"model": "colours", "image_size": 64, "grid": list(grid or self.grid), "width": 4}

    def tokens(self, images_B3HW: torch.Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        pooled = F.adaptive_avg_pool2d(images_B3HW, grid or self.grid)
        colours_BN4 = F.pad(pooled.flatten(2).transpose(1, 2), (0, 1), value=1.0)
        return Tokens(F.normalize(colours_BN4, dim=-1), grid or self.grid)


def listed(sizes: dict[str, tuple[int, int]] = BUCKETS) -> str:
    """The override for `data.buckets`."""
    return "data.buckets=[" + ",".join(f"[{height},{width}]" for height, width in sizes.values()) + "]"
