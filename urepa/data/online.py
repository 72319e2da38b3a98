"""A teacher that is asked while training: the interface of a token store, without a cache.

Shapes: R records, N tokens, D width, S image size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.data.reading import MIRRORED

MEAN_SAMPLES = 256  # training images whose tokens give the mean token


class OnlineTokens:
    """Teacher and backbone see the same image, mirrored or not: `images_of` turns sample ids into RGB [R,3,S,S] in
    [0,1] as they are."""

    record_bytes = 0

    def __init__(self, teacher: Any, images_of: Callable[[list[str]], Tensor], train_ids: list[str]) -> None:
        self.teacher, self.images_of = teacher, images_of
        self._mean_ids = train_ids[:MEAN_SAMPLES]
        self.manifest = {"kind": "online", "teacher": teacher.manifest()}

    def tensor(self, keys: list[str], raw_RB: np.ndarray | None = None) -> Tensor:
        """Tokens [R,N,D] of the samples, float32, on the device that there is."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        images = self.images_of([key.removesuffix(MIRRORED).removesuffix("_mid") for key in keys])
        mirrored_R111 = torch.tensor([key.endswith(MIRRORED) for key in keys]).view(-1, 1, 1, 1)
        images = torch.where(mirrored_R111, images.flip(-1), images)
        # out of inference mode: the loss saves them for its backward pass
        return self.teacher.tokens(images.to(device)).x_BND.clone()

    @cached_property
    def _mean(self) -> Tensor:
        chunks = [self._mean_ids[i : i + 32] for i in range(0, len(self._mean_ids), 32)]
        return torch.cat([self.tensor(ids) for ids in chunks]).double().mean((0, 1)).float().cpu()

    def mean_token(self) -> Tensor:
        """The mean token [D] over the first training samples (a cache's is over all of them)."""
        return self._mean

    def close(self) -> None:
        """Nothing is open."""
