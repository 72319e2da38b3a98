"""DINOv2 through transformers: patch tokens of a square image, average-pooled to a smaller grid.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.contracts import Tokens
from urepa.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
PATCH = 14


class DINOv2:
    """Patch tokens after the last LayerNorm, reshaped to their own grid, pooled to `grid`, of unit length.

    Spec 000 §3.3 takes the first 1,296 of 37x37 tokens and views them as 36x36, which shears the image; here
    all of them are used (ERRATA).

    Args:
        model: a hub id or a local folder. image_size: pixels, a multiple of 14; 518 gives 37x37 tokens.
        grid: rows and columns after pooling. width: D, so that heads can be built from a cache alone.
    """

    def __init__(self, model: str, image_size: int, grid: list[int], width: int) -> None:
        native = image_size // PATCH
        if image_size % PATCH or not all(1 <= g <= native for g in grid):
            raise UserError(
                f"teacher: image_size={image_size} must be a multiple of {PATCH}, and grid={list(grid)} at most "
                "image_size/14"
            )
        self.model, self.image_size, self.width = model, image_size, width
        self.grid = (grid[0], grid[1])

    def manifest(self) -> dict[str, Any]:
        """What its tokens depend on, as far as it can be known without the weights."""
        return {
            "model": self.model,
            "image_size": self.image_size,
            "grid": list(self.grid),
            "width": self.width,
            "crop": "center",
            "flip": "none",
        }

    @cached_property
    def _network(self) -> Any:
        from transformers import Dinov2Model

        return Dinov2Model.from_pretrained(self.model, use_safetensors=True).eval().requires_grad_(False)

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """Square RGB in [0,1] to Tokens [B,N,D]."""
        size, side = (self.image_size, self.image_size), self.image_size // PATCH
        images = F.interpolate(images_B3HW, size=size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        hidden_BND = self._network((images.clamp(0, 1) - mean) / std).last_hidden_state
        patches = Tokens(hidden_BND[:, 1:], (side, side))  # the first token is CLS
        pooled = F.adaptive_avg_pool2d(patches.to_map(), self.grid)
        return Tokens(F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1), self.grid)
