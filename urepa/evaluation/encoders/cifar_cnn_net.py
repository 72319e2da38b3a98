"""A small classifier of a track's own classes. Its pool features represent images in distances between distributions.

It is trained only on the track's training images (`urepa.train_classifier`), so no run is aligned to it and it shares
nothing with a teacher. One safetensors file has its weights, its accuracy and its training data's properties.

Shapes: B images, S image size, D = 128 features, K classes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.hashing import file_sha256
from urepa.core.types import Tokens
from urepa.evaluation.classifier_file import COMMAND, read_classifier_metadata
from urepa.models.weight_files import read_safetensors

STAGES = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))  # channels in, channels out, stride
FEATURES = STAGES[-1][1]


class Classifier(nn.Module):
    """Five stages of 3x3 convolution, BatchNorm and ReLU, a mean over all positions, and a linear layer to the
    classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(_stage(*stage) for stage in STAGES))
        self.classes = nn.Linear(FEATURES, num_classes)

    def features(self, images_B3SS: Tensor) -> Tensor:
        """Maps RGB in [0,1] to pool features [B,D], which are at least 0."""
        features: Tensor = self.stages(images_B3SS * 2 - 1).mean((2, 3))
        return features

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Maps RGB in [0,1] to logits [B,K]."""
        logits: Tensor = self.classes(self.features(images_B3SS))
        return logits


def _stage(channels: int, out_channels: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class CifarCNNNetwork:
    """The features before the last layer, with weights from a local file. Images of another size than the training size
    are resized to it (bilinear, with antialiasing)."""

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def manifest(self) -> dict[str, Any]:
        """The properties on which its features depend, without its weights."""
        return {"model": "cifar_cnn", "features": FEATURES, "resize": "bilinear"}

    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        self._require()
        return file_sha256(Path(self.weights))

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """Maps RGB in [0,1] to one token, which is the pool features divided by √128."""
        images_B3SS = self._resize(images_B3HW)
        features_BD = self._network.to(images_B3SS.device).features(images_B3SS)
        return Tokens(features_BD[:, None] / FEATURES**0.5, (1, 1))

    @torch.inference_mode()
    def probabilities(self, images_B3HW: Tensor) -> Tensor:
        """Maps RGB in [0,1] to probabilities [B,K] of the track's classes."""
        images_B3SS = self._resize(images_B3HW)
        logits_BK: Tensor = self._network.to(images_B3SS.device)(images_B3SS)
        return logits_BK.softmax(1)

    @property
    def accuracy(self) -> float:
        """The share of the track's test images that it labelled correctly after its training."""
        return float(self._metadata["accuracy"])

    @property
    def num_classes(self) -> int:
        """How many classes it tells apart."""
        return int(self._metadata["classes"])

    def _resize(self, images_B3HW: Tensor) -> Tensor:
        size = (self._image_size, self._image_size)
        images_B3SS = images_B3HW.float()
        if images_B3SS.shape[-2:] != size:
            resized = F.interpolate(images_B3SS, size, mode="bilinear", align_corners=False, antialias=True)
            images_B3SS = resized.clamp(0, 1)
        return images_B3SS

    @cached_property
    def _metadata(self) -> dict[str, str]:
        self._require()
        return read_classifier_metadata(Path(self.weights))

    @property
    def _image_size(self) -> int:
        return int(self._metadata["image_size"])

    @cached_property
    def _network(self) -> Classifier:
        network = Classifier(self.num_classes)
        network.load_state_dict(read_safetensors(Path(self.weights)))
        return network.eval().requires_grad_(False)

    def _require(self) -> None:
        if not Path(self.weights).is_file():
            raise UserError(
                f"there is no {self.weights}: cifar_cnn needs a classifier of the track; make it with "
                f"`{COMMAND} data=NAME` and this run's data overrides, or give its path, "
                "evaluation.generation.encoders.NAME.weights=FILE (evaluation.classified.classifier.weights=FILE)"
            )
