"""The same step with an online teacher, which encodes the images of every batch as REPA's train.py does
(github.com/sihyun-yu/REPA), instead of cached tokens.

Shapes: R records, B batch, S image size, N tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.types import Batch, Tokens
from urepa.data.lists.samples import Samples


class RandomImages:
    """Random uint8 RGB [R,3,S,S] in memory, one for each sample. They are read like a token store: ahead of the step,
    by the reader's threads, into pinned memory. The "tokens" are pixels, on a grid of SxS."""

    def __init__(self, samples: Samples, image_size: int) -> None:
        self.rows = {sample.key: row for row, sample in enumerate(samples)}
        self.shape = (3, image_size, image_size)
        self.record_bytes = 3 * image_size**2
        generator = torch.Generator().manual_seed(0)
        shape = (len(self.rows), self.record_bytes)
        self.pixels_R = torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def tensor(self, keys: list[str], raw_RB: np.ndarray | None = None) -> Tensor:
        """The pixels [B,S·S,3] of these records, a view of the images in the memory `raw_RB` if given."""
        rows = torch.tensor([self.rows[key] for key in keys])
        out = (
            torch.empty(len(keys), self.record_bytes, dtype=torch.uint8) if raw_RB is None else torch.from_numpy(raw_RB)
        )
        return torch.index_select(self.pixels_R, 0, rows, out=out).view(len(keys), 3, -1).mT

    def close(self) -> None:
        """Does nothing: no file is open."""


class OnlineTeacher:
    """Turns a batch's images into tokens on the device. The teacher has its architecture and random weights, because
    neither time nor FLOPs depend on the weights; nothing is downloaded."""

    def __init__(
        self, teacher: Any, device: torch.device, autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> None:
        """`autocast`: the trainer's."""
        self.teacher, self.device, self.autocast = teacher, device, autocast
        self.network = teacher.build_without_weights()

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside, the network is on the device; outside it is not, so that the other loops' memory excludes it."""
        self.network.to(self.device)
        try:
            yield
        finally:
            self.network.to("cpu")

    def tokens(self, images_B3SS: Tensor) -> Tokens:
        """The tokens of uint8 images, without gradient: scaled to [0,1], preprocessed and encoded by the teacher."""
        with self.autocast():
            tokens = self.teacher.tokens(images_B3SS.float() / 255)
        # out of inference mode, since the loss saves them for its backward pass, and laid out as in a store
        return replace(tokens, x_BND=tokens.x_BND.clone(memory_format=torch.contiguous_format))

    def add_tokens(self, batches: list[Batch]) -> list[Batch]:
        """Micro-batches with tokens instead of images."""
        moved = [batch.to(self.device) for batch in batches]
        return [
            replace(batch, teachers={name: self.tokens(pixels.to_map()) for name, pixels in batch.teachers.items()})
            for batch in moved
        ]
