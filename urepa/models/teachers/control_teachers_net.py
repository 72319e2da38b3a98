"""Teachers that are controls: what does a gain from alignment depend on?

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core import random_draws
from urepa.core.types import Tokens
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network


class RandomLite0Network(EfficientNetLite0Network):
    """EfficientNet-Lite0 with weights drawn from `weights_seed` in torch's default distributions, and batch norms that
    normalise by nothing."""

    network = "efficientnet-lite0-random"

    def __init__(
        self,
        image_size: int,
        grid: list[int],
        stride: int,
        unit_length: bool = True,
        whiten: bool = False,
        weights_seed: int = 0,
    ) -> None:
        super().__init__(image_size, grid, stride, unit_length, whiten)
        self.weights_seed = weights_seed
        self.network = f"{type(self).network}-{weights_seed}"  # the name in manifests

    def weights_sha256(self) -> str:
        """The SHA-256 of the drawn values."""
        digest = hashlib.sha256()
        for name, tensor in self._model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _model(self) -> Any:
        from efficientnet_lite_pytorch import EfficientNet

        with random_draws.torch_seed(self.weights_seed, "teacher"):
            model = EfficientNet.from_name(self.architecture)
        return model.eval().requires_grad_(False)


class ShuffledLite0Network(EfficientNetLite0Network):
    """EfficientNet-Lite0 whose tokens are permuted in space, in an order that depends only on the image's pixels. So
    the set of an image's tokens is the teacher's, and where each token belongs is lost."""

    network = "efficientnet-lite0-shuffled"

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        tokens = super().tokens(images_B3HW, grid)
        orders = [order_of(image_3HW, tokens.x_BND.shape[1]) for image_3HW in images_B3HW]
        order_BN1 = torch.from_numpy(np.stack(orders)).to(tokens.x_BND.device)[..., None]
        return replace(tokens, x_BND=tokens.x_BND.gather(1, order_BN1.expand_as(tokens.x_BND)))


def order_of(image_3HW: Tensor, count: int) -> np.ndarray:
    """A permutation of 0 ... count − 1, drawn from the image's pixels in multiples of 1/255."""
    pixels = (image_3HW * 255).round().to("cpu", torch.uint8).numpy().tobytes()
    seed = int.from_bytes(hashlib.blake2b(pixels, digest_size=8).digest(), "little")
    return random_draws.generator(seed, "shuffled_tokens").permutation(count)
