"""What stored tokens are compared with: an encoder's tokens of the same images, or the colours and edges of the images
or of their latents.

Shapes: S samples, C channels, H and W rows and columns, F features, h and w token grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.data.alignment.views import WHOLE, Crop

CHUNK = 8  # images that an encoder gets at a time


class Reference(Protocol):
    """Features of the images, in place."""

    name: str

    def map(self, crop: Crop) -> Tensor:
        """The features [S,F,a,b] of the images' central crop."""
        ...


@dataclass
class LocalFeatures:
    """The values of the images' or latents' channels, and how much they change there."""

    name: str
    values_SCHW: Tensor

    def map(self, crop: Crop) -> Tensor:
        cut = central(self.values_SCHW, crop)
        vertical = F.pad((cut[:, :, 1:] - cut[:, :, :-1]).abs(), (0, 0, 0, 1), mode="replicate")
        horizontal = F.pad((cut[..., 1:] - cut[..., :-1]).abs(), (0, 1, 0, 0), mode="replicate")
        return torch.cat([cut, vertical + horizontal], dim=1)


@dataclass
class EncodedImages:
    """An encoder's tokens of the images, RGB in [0,1]."""

    name: str
    images_S3HW: Tensor
    teacher: Any  # a built `TeacherNetwork` with the grid of these images

    def map(self, crop: Crop) -> Tensor:
        cut = self.images_S3HW if crop == WHOLE else central(self.images_S3HW, crop)
        return torch.cat([self.teacher.tokens(chunk).to_map().cpu() for chunk in cut.split(CHUNK)]).float()


def central(values_SCHW: Tensor, crop: Crop) -> Tensor:
    """The central share of rows and columns, to the nearest pixel."""
    starts, lengths = [], []
    for side, share in zip(values_SCHW.shape[-2:], crop, strict=True):
        length = max(1, round(side * share))
        starts.append((side - length) // 2)
        lengths.append(length)
    return values_SCHW[..., starts[0] : starts[0] + lengths[0], starts[1] : starts[1] + lengths[1]]
