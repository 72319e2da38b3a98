"""Batches whose random draws are addressed by (seed, step, position): the samples, flips, noise, timesteps and
dropped conditions of each step.

Shapes: B batch, R rows of it, CHW latent, N tokens, D teacher width. Everything is drawn on the CPU, per position of
the global batch, so that any number of ranks and micro-batches sees the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core import random_draws
from urepa.core.class_token_protocols import CLASS_TOKEN
from urepa.core.conditions import check_dropout, draw_withheld, without_never_given
from urepa.core.errors import UserError
from urepa.core.protocols import ScheduleMath
from urepa.core.types import Attention, Batch, Tokens
from urepa.data.bucketed_cache import Caches
from urepa.data.cache import Cache
from urepa.data.lists.samples import Sample
from urepa.data.sample_order import SampleOrder
from urepa.method.diffusion_fraction import strata

AHEAD = 3  # steps that are read ahead of the current one
THREADS = 2  # threads that read ahead
VALIDATION_SEED = 0  # validation sees the same noise and timesteps in every arm and seed


class Slot:
    """Memory for the tokens of one step, by teacher, allocated once and pinned where there is a GPU: allocating
    memory for every batch takes longer than reading it."""

    def __init__(self, records: int, largest: dict[str, int]) -> None:
        """Args:
        records: how many records of each teacher the slot holds.
        largest: the bytes of a teacher's largest record, by teacher.
        """
        pinned = torch.cuda.is_available()
        self._raw = {
            name: torch.zeros(records * size, dtype=torch.uint8, pin_memory=pinned).numpy()
            for name, size in largest.items()
        }
        self.copied: torch.cuda.Event | None = None

    def rows(self, first: int, count: int, record_bytes: dict[str, int]) -> dict[str, np.ndarray]:
        """Memory [count, bytes of a record] by teacher, behind `first` records of the same size."""
        return {
            name: raw[first * size : (first + count) * size].reshape(count, size)
            for name, raw in self._raw.items()
            for size in (record_bytes[name],)
        }

    def wait(self) -> None:
        """Waits until the copy from this memory to the device is complete."""
        if self.copied is not None:
            self.copied.synchronize()
            self.copied = None


def record_bytes(bucket: Cache) -> dict[str, int]:
    """The bytes of a record of a bucket's tokens, by teacher."""
    return {name: tokens.record_bytes for name, tokens in bucket.tokens.items()}


@dataclass(frozen=True)
class Layout:
    """How a global batch is divided: its positions into micro-batches, and each micro-batch among the ranks."""

    global_batch: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        assert self.global_batch % (self.accumulation * self.world) == 0, "checked by training.checks.combinations"

    def positions(self, micro: int) -> range:
        """The global batch's positions that are this rank's in micro-batch `micro`."""
        size = self.global_batch // (self.accumulation * self.world)
        start = (micro * self.world + self.rank) * size
        return range(start, start + size)


class TrainingReader:
    """Training batches, each of one bucket, in the order of `SampleOrder`."""

    def __init__(
        self,
        cache: Caches,
        objective: Any,
        layout: Layout,
        seed: int,
        diffusion_fraction: float = 1.0,
        schedule: ScheduleMath | None = None,
        draws: tuple[str, ...] = (),
        attention: Sequence[int] = (),
        keeps_condition: bool = False,
        class_values: int = 0,
    ) -> None:
        """Teacher tokens are read only for the steps at which the schedule uses the teacher; for all steps if None.
        `draws`: the purposes for which each sample gets a uniform number (`Batch.draws`). `attention`: the blocks of an
        online teacher whose attention is read with its tokens (`Batch.attention`). `keeps_condition`: whether a batch
        has its condition before dropout too (`Batch.whole`), without parts that training always withholds.
        `class_values`: the values of a class token, whose noise a batch then has (`Batch.class_noise_BE11`)."""
        self.cache, self.objective, self.layout = cache, objective, layout
        self.seed, self.diffusion_fraction = seed, diffusion_fraction
        self.schedule, self.draws, self.attention = schedule, draws, attention
        self.keeps_condition, self.class_values = keeps_condition, class_values
        assert schedule is None or schedule.delay is None or schedule.delay > AHEAD, (
            "the schedule must act later than the reader reads ahead"
        )
        counts = {bucket.bucket: len(bucket.splits["train"]) for bucket in cache.buckets}
        self.order = SampleOrder(counts, layout.global_batch, seed)
        check_dropout(cache.conditions.dropout, cache.conditions.null(1).names, "the track's dropout of conditions")

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch, in which every sample is seen once except those that do not fill a batch."""
        return self.order.steps_per_epoch

    def asks_teacher(self, step: int) -> bool:
        """Whether teacher tokens are read for this step."""
        return self.schedule is None or self.schedule.asks_teacher(step)

    def read(self, step: int) -> list[Batch]:
        """This rank's micro-batches of the update with index `step`, in newly allocated memory."""
        return self._read(step, self.asks_teacher(step))

    def _read(self, step: int, asks_teacher: bool, slot: Slot | None = None) -> list[Batch]:
        """As `read`; with a slot, the tokens are read into its memory."""
        if slot is not None:
            slot.wait()
        bucket_index, indices = self.order.read(step)
        bucket = self.cache.buckets[bucket_index]
        batches = []
        for micro in range(self.layout.accumulation):
            positions = self.layout.positions(micro)
            samples = [self._sample(bucket.splits["train"][indices[p]], step, p) for p in positions]
            drop = [random_draws.generator(self.seed, "drop", step, p).random() for p in positions]
            noise = [random_draws.generator(self.seed, "noise", step, p) for p in positions]
            times = [random_draws.generator(self.seed, "t", step, p) for p in positions]
            posterior = [random_draws.generator(self.seed, "posterior", step, p) for p in positions]
            draw = partial(self._condition_draw, step, positions)
            raw = {} if slot is None else slot.rows(micro * len(positions), len(positions), record_bytes(bucket))
            teachers, attention = _asked(bucket, samples, self.attention, raw) if asks_teacher else ({}, {})
            batch = _batch(bucket, self.objective, samples, noise, times, posterior, teachers, draw)
            withheld = draw_withheld(self.cache.conditions.dropout, torch.tensor(drop, dtype=torch.float64))
            whole = without_never_given(batch.condition, self.cache.conditions.dropout)
            batch = replace(batch, whole=whole if self.keeps_condition else None)
            condition = batch.condition.drop(withheld)
            rows_R = self._rows(step, positions)
            draws = {
                purpose: torch.tensor([random_draws.generator(self.seed, purpose, step, p).random() for p in positions])
                for purpose in self.draws
            }
            own_noise = (random_draws.generator(self.seed, CLASS_TOKEN, step, p) for p in positions)
            class_noise = _class_noise(own_noise, self.class_values)
            batch = replace(batch, condition=condition, rows_R=rows_R, slot=slot, class_noise_BE11=class_noise)
            batches.append(replace(batch, draws=draws, attention=attention, is_aligned=asks_teacher))
        return batches

    def _condition_draw(self, step: int, positions: range, purpose: str, i: int) -> np.random.Generator:
        """The generator with which the condition of the sample at the i-th of these positions is drawn. `purpose`: what
        it draws, such as "caption"."""
        return random_draws.generator(self.seed, purpose, step, positions[i])

    def _read_ahead(self, step: int, asks_teacher: bool, slot: Slot) -> list[Batch]:
        batches = self._read(step, asks_teacher, slot)
        return [b.pin_memory() for b in batches] if torch.cuda.is_available() else batches

    def _rows(self, step: int, positions: range) -> Tensor | None:
        """The positions that have a diffusion term: for a fraction p/q, p random ones of every q neighbours in the
        global batch, so that every rank has equally many. None: all positions."""
        if self.diffusion_fraction == 1:
            return None
        p, q = strata(self.diffusion_fraction)
        chosen: list[int] = []
        for first in range(positions.start, positions.stop, q):
            rng = random_draws.generator(self.seed, "diffusion", step, first // q)
            chosen += sorted((first - positions.start + rng.permutation(q)[:p]).tolist())
        return torch.tensor(chosen, dtype=torch.long)

    def _sample(self, sample: Sample, step: int, position: int) -> Sample:
        """The sample, mirrored with probability 0.5 if the cache has flips; one draw decides for image and tokens."""
        if self.cache.flips and random_draws.generator(self.seed, "flip", step, position).random() < 0.5:
            return replace(sample, mirrored=True)
        return sample

    def stream(self, start: int, stop: int) -> Generator[list[Batch]]:
        """The batches of steps start..stop-1, read ahead by threads. A step's batches are overwritten once the
        next step's are requested. Close the generator when done."""
        local = self.layout.global_batch // self.layout.world
        sizes = [record_bytes(bucket) for bucket in self.cache.buckets]
        largest = {name: max(size[name] for size in sizes) for name in sizes[0]}
        slots = [Slot(local, largest) for _ in range(AHEAD + 1)]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="reader") as pool:

            def submit(step: int) -> Future[list[Batch]]:
                # `asks_teacher` is called here because the schedule's state belongs to this thread
                return pool.submit(self._read_ahead, step, self.asks_teacher(step), slots[step % len(slots)])

            ahead = [submit(step) for step in range(start, min(start + AHEAD, stop))]
            try:
                for step in range(start, stop):
                    batches = ahead.pop(0).result()
                    if step + AHEAD < stop:
                        ahead.append(submit(step + AHEAD))
                    yield batches
            finally:
                for future in ahead:
                    future.cancel()


class ValidationReader:
    """The validation split in fixed groups, each of one bucket. The shuffle is fixed and the noise and timesteps depend
    on the sample ids alone, so they are the same for every arm, seed and number of GPUs (docs/errata.md: a shuffle in
    place of class order)."""

    def __init__(
        self,
        cache: Caches,
        objective: Any,
        group: int,
        draws: tuple[str, ...] = (),
        attention: Sequence[int] = (),
        class_values: int = 0,
    ) -> None:
        """`draws`, `attention` and `class_values`: see `TrainingReader`."""
        self.cache, self.objective, self.draws, self.attention = cache, objective, draws, attention
        self.class_values = class_values
        self.groups: list[list[Sample]] = []
        self.buckets: list[Cache] = []  # the bucket of each group
        for bucket in cache.buckets:
            samples = bucket.splits["val"]
            order = random_draws.permutation(VALIDATION_SEED, 0, len(samples)).tolist()
            groups = [[samples[i] for i in order[at : at + group]] for at in range(0, len(order), group)]
            self.groups += groups
            self.buckets += [bucket] * len(groups)
        self.full = [len(g) == group for g in self.groups]
        if not any(self.full):
            most = max(len(bucket.splits["val"]) for bucket in cache.buckets)
            where = " of the largest bucket" if len(cache.buckets) > 1 else ""
            raise UserError(
                f"trainer.validation_group={group} is more than the {most} validation samples{where}; give "
                f"trainer.validation_group={most} or fewer"
            )

    def read(self, index: int) -> Batch:
        """One group as a batch. All conditions are given, except parts that training always withholds."""
        samples, bucket = self.groups[index], self.buckets[index]
        key = [random_draws.digest64("val", s.sample_id) for s in samples]
        noise = [random_draws.generator(k, "noise") for k in key]
        times = [random_draws.generator(k, "t") for k in key]
        teachers, attention = _asked(bucket, samples, self.attention)
        batch = _batch(bucket, self.objective, samples, noise, times, posterior=None, teachers=teachers)
        draws = {
            purpose: torch.tensor([random_draws.generator(k, purpose).random() for k in key]) for purpose in self.draws
        }
        class_noise = _class_noise((random_draws.generator(k, CLASS_TOKEN) for k in key), self.class_values)
        condition = without_never_given(batch.condition, self.cache.conditions.dropout)
        return replace(batch, condition=condition, draws=draws, attention=attention, class_noise_BE11=class_noise)


def _class_noise(rngs: Iterable[np.random.Generator], values: int) -> Tensor | None:
    """The noise of a class token [B,E,1,1] with this number of values; None for 0."""
    return torch.stack([random_draws.normal((values, 1, 1), rng) for rng in rngs]) if values else None


def _asked(
    bucket: Cache, samples: list[Sample], blocks: Sequence[int], raw: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, Tokens], dict[int, Attention]]:
    """The teachers' tokens, and the attention of these blocks of an online teacher."""
    return bucket.teacher_attending(samples, blocks) if blocks else (bucket.teachers(samples, raw), {})


def _batch(
    bucket: Cache,
    objective: Any,
    samples: list[Sample],
    noise: list[Any],
    times: list[Any],
    posterior: list[Any] | None,
    teachers: dict[str, Tokens],
    draw: Callable[[str, int], Any] | None = None,
) -> Batch:
    x0 = bucket.x0(samples, posterior)
    _, channels, height, width = x0.shape
    shape = channels, height, width
    return Batch(
        ids=[s.key for s in samples],
        x0=x0,
        noise=torch.stack([random_draws.normal(shape, rng) for rng in noise]),
        t_B=torch.tensor([objective.at_size(objective.sample_t(rng), shape) for rng in times]),
        condition=bucket.conditions.of_samples(samples, draw, x0),
        teachers=teachers,
    )
