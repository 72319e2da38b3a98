"""Which samples each step trains on. Each step reads from one bucket; each bucket is reshuffled every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from urepa.core import random_draws
from urepa.data.lists.split_sizes import check_batch_size, check_buckets


@dataclass(frozen=True)
class Epoch:
    """The order of one epoch: the bucket of each step, the step's index among the steps of its bucket, and a
    permutation of each bucket's samples."""

    number: int
    bucket_of_step: np.ndarray
    place_of_step: np.ndarray
    orders: list[np.ndarray]


class SampleOrder:
    """A permutation per (seed, epoch, bucket), floor(n/B) steps of B samples from each; the remaining samples
    are dropped, and the order of the buckets is random."""

    def __init__(self, samples: Mapping[str, int], batch_size: int, seed: int) -> None:
        """`samples` is the number of samples of each bucket, by name; a track's only bucket has an empty name. Raises
        UserError if a bucket would never fill a batch."""
        self.samples, self.batch_size, self.seed = dict(samples), batch_size, seed
        if len(self.samples) == 1:
            check_batch_size(batch_size, *self.samples.values())
        check_buckets(self.samples, batch_size)
        self.steps = [count // batch_size for count in self.samples.values()]
        self._known: Epoch | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The steps of all buckets together."""
        return sum(self.steps)

    def read(self, step: int) -> tuple[int, list[int]]:
        """The index of a step's bucket, and the indices of the global batch's samples in that bucket."""
        number, within = divmod(step, self.steps_per_epoch)
        epoch = self._epoch(number)
        bucket, place = int(epoch.bucket_of_step[within]), int(epoch.place_of_step[within])
        start = place * self.batch_size
        return bucket, epoch.orders[bucket][start : start + self.batch_size].tolist()

    def _epoch(self, number: int) -> Epoch:
        known = self._known  # read once: another thread may already have replaced it with the next epoch
        if known is None or known.number != number:
            known = self._draw(number)
            self._known = known
        return known

    def _draw(self, number: int) -> Epoch:
        bucket_of_step = np.repeat(np.arange(len(self.steps)), self.steps)
        if len(self.steps) > 1:
            order = random_draws.permutation(self.seed, number, len(bucket_of_step), "buckets")
            bucket_of_step = bucket_of_step[order]
        place_of_step = np.empty_like(bucket_of_step)
        for bucket, steps in enumerate(self.steps):
            place_of_step[bucket_of_step == bucket] = np.arange(steps)
        orders = [
            random_draws.permutation(self.seed, number, count, f"order/{name}" if name else "order")
            for name, count in self.samples.items()
        ]
        return Epoch(number, bucket_of_step, place_of_step, orders)
