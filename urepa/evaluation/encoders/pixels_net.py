"""The pixels of an image as features.

Shapes: B images, D features, g side of a grid.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from urepa.core.types import Tokens


class PixelsNetwork:
    """The image averaged over a g x g grid, in [-1,1]: 3g² features.

    It measures colours and coarse layout and needs no weights. It is insensitive to sharpness, texture and content: a
    blurred photograph scores as well as a sharp one.
    """

    def __init__(self, grid: int) -> None:
        self.grid = grid

    def manifest(self) -> dict[str, Any]:
        """The properties on which its features depend."""
        return {"model": "pixels", "grid": self.grid}

    def weights_sha256(self) -> str:
        """A constant: it has no weights."""
        return "none"

    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """Maps RGB in [0,1] to one token of length at most 1."""
        features_BD = F.adaptive_avg_pool2d(images_B3HW, self.grid).flatten(1) * 2 - 1
        return Tokens(features_BD[:, None] / features_BD.shape[1] ** 0.5, (1, 1))
