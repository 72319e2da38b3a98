"""What turns images into features for a distance between distributions. Teachers of conf/teacher serve as they are.

An encoder has a teacher's `tokens(images)`, `manifest()` and `weights_sha256()`, and owns its preprocessing.
Shapes: B images, N tokens, D features, g side of a grid.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.hashing import file_sha256
from urepa.core.types import Tokens
from urepa.evaluation.inception import FEATURES, PUBLISHED, InceptionV3, read

INCEPTION_SIZE = 299


def image_features(tokens: Tokens) -> Tensor:
    """An image's features [B,D]: √D × the mean of its tokens. A teacher's tokens have unit length; in these units they
    have a mean square of 1 per dimension, which the kernel of KID, (x·y / D + 1)³, is made for."""
    return tokens.x_BND.float().mean(1) * tokens.x_BND.shape[2] ** 0.5


def built(encoder: Any) -> Any:
    """What a declared teacher builds; any other encoder is its own network."""
    return encoder.build() if hasattr(encoder, "build") else encoder


class Pixels:
    """The image averaged over a g x g grid, in [-1,1]: 3g² features.

    It measures colours and coarse layout and needs no weights. It does not see sharpness, texture or what is shown: a
    blurred photograph is as good as a sharp one.
    """

    def __init__(self, grid: int) -> None:
        self.grid = grid

    def manifest(self) -> dict[str, Any]:
        """What its features depend on."""
        return {"model": "pixels", "grid": self.grid}

    def weights_sha256(self) -> str:
        """It has none."""
        return "none"

    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """RGB in [0,1] to one token of length at most 1."""
        features_BD = F.adaptive_avg_pool2d(images_B3HW, self.grid).flatten(1) * 2 - 1
        return Tokens(features_BD[:, None] / features_BD.shape[1] ** 0.5, (1, 1))


class Inception:
    """FID's Inception-v3 with weights from a local file.

    With the published weights the Fréchet distance of its features is FID as pytorch-fid computes it, as far as the
    numbers of images are the usual ones and the real images are photographs. Those of a latent track are not: they are
    its VAE's reconstructions (`urepa.evaluation.image_distances`), and published FIDs of such models are against the
    photographs. Images of any size are quantised to 255ths and resized bilinearly to 299x299
    (corners not aligned, no antialiasing). The original resizes by TensorFlow 1's rule, which places the samples
    otherwise: its FID differs a little.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def manifest(self) -> dict[str, Any]:
        """What its features depend on, but for its weights."""
        return {"model": "inception", "features": FEATURES, "image_size": INCEPTION_SIZE, "resize": "bilinear"}

    def weights_sha256(self) -> str:
        """Of the file."""
        self._require()
        return file_sha256(Path(self.weights))

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """RGB in [0,1] to one token whose √2048-fold are the pool features."""
        return Tokens(self._features(images_B3HW)[:, None] / FEATURES**0.5, (1, 1))

    @torch.inference_mode()
    def probabilities(self, images_B3HW: Tensor) -> Tensor:
        """RGB in [0,1] to class probabilities [B,1008], without the last layer's bias as the original has it."""
        return self._network.probabilities(self._features(images_B3HW))

    def _features(self, images_B3HW: Tensor) -> Tensor:
        levels_B3HW = (images_B3HW.float() * 255).round() / 255
        size = (INCEPTION_SIZE, INCEPTION_SIZE)
        resized_B3SS = F.interpolate(levels_B3HW, size, mode="bilinear", align_corners=False)
        return self._network.to(images_B3HW.device)(resized_B3SS * 2 - 1)

    @cached_property
    def _network(self) -> InceptionV3:
        self._require()
        return read(Path(self.weights))

    def _require(self) -> None:
        if not Path(self.weights).is_file():
            raise UserError(
                f"there is no {self.weights}: FID and the Inception Score need {PUBLISHED} as a local file; say where "
                "it lies with evaluation.inception.encoders.inception.weights=FILE, or leave this evaluation out"
            )
