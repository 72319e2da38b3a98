"""Mean and standard deviation of an image encoder's vectors and patch tokens over the training set.

A record of image tokens is [1+T,D]: the encoder's vector, followed by the tokens of its patches. Beside a store's
records lies `statistics.npy`, float64 [2+4D]: the number of training samples, that of their patches, and the sums of
the vectors, of their squares, of the patches, and of their squares. An export has in `image_statistics.json`
the means and deviations by which both are standardised, with the facts of the encoder.

Shapes: B samples, T patches, D width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.data.stores.digests import STATISTICS
from urepa.data.stores.record_reading import Store

IMAGE_TOKENS = "image_tokens"  # the kind of such a store, in its manifest
EXPORTED = "image_statistics.json"
UNKNOWN = "unknown"  # of weights that shards do not name
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
    encoder: Mapping[str, Any] = field(default_factory=dict)  # the facts of the network that made them

    @staticmethod
    def of(stores: Sequence[Store]) -> ImageStatistics:
        """Those of the training samples of all stores, as of one."""
        total = torch.stack([store.statistics() for store in stores]).sum(0)
        counts, (vectors, squares, patches, patch_squares) = total[:2], total[2:].chunk(4)
        return ImageStatistics(
            _mean_and_deviation(vectors, squares, counts[0]),
            _mean_and_deviation(patches, patch_squares, counts[1]),
            stores[0].manifest.get("encoder", {}),
        )

    def to_json(self) -> str:
        """The content of an export's file."""
        values = {name: [x.tolist() for x in getattr(self, name)] for name in ("vectors", "patches")}
        facts = {key: value for key, value in self.encoder.items() if key != "grid"}  # that of one of the shapes
        return json.dumps({"encoder": facts, **values})

    @staticmethod
    def read(file: Path, width: int) -> ImageStatistics:
        """Reads an export's file. Raises UserError if it does not hold the statistics of an encoder of this width."""
        stored = read_json(file)
        try:
            found = {
                name: tuple(torch.tensor(x, dtype=torch.float32) for x in stored[name])
                for name in ("vectors", "patches")
            }
            shapes = {tuple(x.shape) for pair in found.values() for x in pair}
            facts = dict(stored["encoder"])
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
            raise UserError(f"{file} is not the statistics of an export; copy it again") from None
        if shapes != {(width,)} or any(len(pair) != 2 for pair in found.values()):
            raise UserError(f"{file} has statistics of another width than the image encoder's {width}; copy it again")
        vectors, patches = ((mean, deviation) for mean, deviation in found.values())
        return ImageStatistics(vectors, patches, facts)

    def check_weights(self, weights_sha256: str) -> None:
        """Raises UserError if the encoder has other weights than that of the statistics. Where those are not known,
        nothing is compared."""
        known = self.encoder.get("weights_sha256", UNKNOWN)
        if known not in (UNKNOWN, weights_sha256):
            raise UserError(
                f"the image encoder's weights ({weights_sha256[:8]}) are not those of the training's image tokens "
                f"({str(known)[:8]}); give data.image_encoder with its weights as in training"
            )


def _mean_and_deviation(sum_D: Tensor, squares_D: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    mean = sum_D / count
    deviation = (squares_D / count - mean**2).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation < LEAST, 1.0, deviation).float()
