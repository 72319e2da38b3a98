"""The network of `urepa.models.teachers.described_vit`.

Shapes: B batch, N patch tokens, P tokens of the network, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.models.teachers.vit_net import FAMILIES, ViTNetwork
from urepa.models.teachers.vit_sizes import nearest_multiple

if TYPE_CHECKING:
    from urepa.models.teachers.described_vit import DescribedViT


class DescribedViTNetwork(ViTNetwork):
    """All patch tokens, of inputs whose sides are multiples of `multiple` pixels, from the token `leading` on."""

    def __init__(self, settings: DescribedViT) -> None:
        settings.check()
        self.settings = settings
        self.unit_length, self.cls_weight = settings.unit_length, settings.cls_weight
        self.family, self.model, self.image_size = str(settings.family), settings.model, settings.image_size
        self.patch, self.width = settings.patch, settings.width
        self.grid = (settings.grid[0], settings.grid[1])
        self.resamples, self.positions = False, None
        self.block, self.whiten = None, settings.whiten

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        return self.settings.grid_at(shape, side)

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        found = super().manifest(self.grid if grid is None else grid)
        own = {"multiple": self.settings.multiple, "leading": self.settings.leading}
        return found | own | {"model": self.settings.stored_as()["model"]}

    def _map_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid

    @torch.inference_mode()
    def states(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tokens]:
        """The class token [B,D] and the tokens [B,N,D], not of unit length. With fewer leading tokens than the network
        has, the last patches are left out. Raises UserError with more, or for images of another side."""
        grid = self.grid if grid is None else grid
        height, width = (nearest_multiple(n, self.settings.multiple) for n in images_B3HW.shape[2:])
        size = height, width
        if (height // self.patch, width // self.patch) != grid:
            raise UserError(
                f"an input of {height}x{width} pixels has other patches than {grid[0]}x{grid[1]}: give this encoder's "
                "image_side as data.image_size, with the image_size and the grid that follow from it"
            )
        images = F.interpolate(images_B3HW, size=size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in FAMILIES[self.family].normalisation)
        network = self.network.to(images.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            hidden_BPD = network((images.clamp(0, 1) - mean) / std).last_hidden_state.float()
        first, count = self.settings.leading, grid[0] * grid[1]
        if hidden_BPD.shape[1] < first + count:
            raise UserError(
                f"leading={first} leaves {hidden_BPD.shape[1] - first} tokens of {self.model} for {count} patches: "
                f"give at most {hidden_BPD.shape[1] - count}, its class and register tokens"
            )
        tokens = Tokens(hidden_BPD[:, first : first + count].contiguous(), grid)
        return hidden_BPD[:, 0], tokens
