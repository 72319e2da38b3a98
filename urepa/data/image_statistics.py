"""Mean and standard deviation of an image encoder's vectors and patch tokens over the training set.

A record of image tokens is [1+T,D]: the encoder's vector, followed by the tokens of its patches. Beside a store's
records lies `statistics.npy`, float64 [2+4D]: the number of training samples, that of their patches, and the sums of
the vectors, of their squares, of the patches, and of their squares.

Shapes: B samples, T patches, D width.
"""

from __future__ import annotations

import io

import numpy as np

from urepa.data.stores.digests import STATISTICS

IMAGE_TOKENS = "image_tokens"  # the kind of such a store, in its manifest


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
