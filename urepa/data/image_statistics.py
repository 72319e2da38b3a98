"""Mean and standard deviation of an image encoder's vectors and patch tokens over the training set.

A record of image tokens is [1+T,D]: the encoder's vector, followed by the tokens of its patches. Beside a store's
records lies `statistics.npy`, float64 [2+4D]: the number of training samples, that of their patches, and the sums of
the vectors, of their squares, of the patches, and of their squares.

Shapes: B samples, T patches, D width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from urepa.data.stores.digests import STATISTICS
from urepa.data.stores.record_reading import Store

IMAGE_TOKENS = "image_tokens"  # the kind of such a store, in its manifest
LEAST = 1e-6  # a smaller standard deviation is that of a constant


def sums_of(records_B1TD: np.ndarray) -> np.ndarray:
    """What these records add to the statistics: [2+4D]."""
    records = records_B1TD.astype(np.float64)
    vectors, patches = records[:, 0], records[:, 1:].reshape(-1, records.shape[-1])
    sums = [part for values in (vectors, patches) for part in (values.sum(0), (values**2).sum(0))]
    return np.concatenate([[len(vectors), len(patches)], *sums])


def statistics_file(total: np.ndarray) -> dict[str, bytes]:
    """The file beside a store that holds its statistics."""
    content = io.BytesIO()
    np.save(content, total, allow_pickle=False)
    return {STATISTICS: content.getvalue()}


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and standard deviation [D], float32, of the vectors and of the patches; 1 for a constant's deviation."""

    vectors: tuple[Tensor, Tensor]
    patches: tuple[Tensor, Tensor]

    @staticmethod
    def of(stores: Sequence[Store]) -> ImageStatistics:
        """Those of the training samples of all stores, as of one."""
        total = torch.stack([store.statistics() for store in stores]).sum(0)
        counts, (vectors, squares, patches, patch_squares) = total[:2], total[2:].chunk(4)
        return ImageStatistics(
            _mean_and_deviation(vectors, squares, counts[0]), _mean_and_deviation(patches, patch_squares, counts[1])
        )


def _mean_and_deviation(sum_D: Tensor, squares_D: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    mean = sum_D / count
    deviation = (squares_D / count - mean**2).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation < LEAST, 1.0, deviation).float()
