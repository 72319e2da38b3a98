"""The features that encoders compute of images."""

from __future__ import annotations

import numpy as np
import torch

from urepa.core.types import Tokens
from urepa.evaluation.encoders.pixels_net import PixelsNetwork
from urepa.evaluation.measures.image_distances_math import image_features


def test_pixels_are_the_means_of_a_grid() -> None:
    images = torch.rand(2, 3, 16, 16)
    features = image_features(PixelsNetwork(4).tokens(images))
    by_hand = images.numpy().reshape(2, 3, 4, 4, 4, 4).mean((3, 5)).reshape(2, 48) * 2 - 1
    np.testing.assert_allclose(features.numpy(), by_hand, atol=1e-6)
    blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 4), scale_factor=4)
    torch.testing.assert_close(image_features(PixelsNetwork(4).tokens(blurred)), features)  # it does not see sharpness


def test_a_teachers_features_are_its_mean_token_at_mean_square_one() -> None:
    one = torch.nn.functional.normalize(torch.randn(5, 1, 64), dim=-1)
    features = image_features(Tokens(one.expand(-1, 6, -1), (2, 3)))
    torch.testing.assert_close(features.square().mean(1), torch.ones(5))
    torch.testing.assert_close(image_features(Tokens(torch.cat([one, -one], 1), (1, 2))), torch.zeros(5, 64))
