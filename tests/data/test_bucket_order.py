"""The bucket and the samples of each step, with several buckets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.data.reader import Slot
from urepa.data.sample_order import SampleOrder

SAMPLES = {"64x64": 21, "48x80": 8, "80x48": 13}


def epoch_of(order: SampleOrder, epoch: int) -> list[tuple[int, list[int]]]:
    steps = order.steps_per_epoch
    return [order.read(step) for step in range(epoch * steps, (epoch + 1) * steps)]


def test_one_bucket_is_a_permutation_in_pieces() -> None:
    """As in the version before buckets: the purpose of the draw is `order`."""
    order = SampleOrder({"": 21}, 4, seed=7)
    for epoch in (0, 1, 5):
        drawn = random_draws.generator(7, "order", step=epoch).permutation(21)
        assert [order.read(5 * epoch + i) for i in range(5)] == [
            (0, drawn[4 * i : 4 * i + 4].tolist()) for i in range(5)
        ]


def test_an_epoch_has_each_buckets_full_batches_once() -> None:
    order = SampleOrder(SAMPLES, 4, seed=0)
    assert order.steps_per_epoch == 5 + 2 + 3
    for epoch in range(3):
        steps = epoch_of(order, epoch)
        assert Counter(bucket for bucket, _ in steps) == {0: 5, 1: 2, 2: 3}
        for bucket, (name, count) in enumerate(SAMPLES.items()):
            seen = [i for of, indices in steps for i in indices if of == bucket]
            drawn = random_draws.generator(0, f"order/{name}", step=epoch).permutation(count)
            assert seen == drawn[: len(seen)].tolist(), "in its own order, without the tail"


def test_the_order_of_buckets_is_drawn_by_address() -> None:
    order = SampleOrder(SAMPLES, 4, seed=0)
    sequences = [[bucket for bucket, _ in epoch_of(order, epoch)] for epoch in range(4)]
    assert len({tuple(sequence) for sequence in sequences}) == 4
    drawn = random_draws.generator(0, "buckets", step=2).permutation(10)
    assert sequences[2] == np.repeat([0, 1, 2], [5, 2, 3])[drawn].tolist()
    backwards = [order.read(step) for step in reversed(range(40))]
    assert backwards[::-1] == [step for epoch in range(4) for step in epoch_of(order, epoch)]


def test_another_bucket_changes_nothing_in_a_buckets_own_order() -> None:
    one, other = (SampleOrder(samples, 4, 0) for samples in (SAMPLES, SAMPLES | {"32x96": 40}))
    for bucket in range(3):
        first, second = (
            [i for of, indices in epoch_of(order, 1) for i in indices if of == bucket] for order in (one, other)
        )
        assert first == second


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ({"64x64": 21, "48x80": 3}, r"48x80 has 3; leave them out \(data.buckets='\[\[64,64\]\]'\), or give a smaller"),
        ({"64x64": 3, "48x80": 1}, "64x64 has 3, 48x80 has 1; give a smaller trainer.batch_size"),
        ({"": 3}, "trainer.batch_size=4 is more than the 3 training samples"),
    ],
)
def test_a_bucket_that_fills_no_batch_is_refused(samples: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SampleOrder(samples, 4, 0)


def test_a_slot_holds_records_of_every_size_in_one_piece_of_memory() -> None:
    slot = Slot(6, {"a": 12, "b": 8})
    for sizes in ({"a": 12, "b": 4}, {"a": 5, "b": 8}):
        for first in (0, 3):
            rows = slot.rows(first, 3, sizes)
            assert {name: raw.shape for name, raw in rows.items()} == {name: (3, size) for name, size in sizes.items()}
            for raw in rows.values():
                raw[:] = 1 + first
        whole = slot.rows(0, 6, sizes)
        assert all(raw[:3].max() == 1 and raw[3:].min() == 4 for raw in whole.values())
        assert all(raw.flags.c_contiguous for raw in whole.values())


def test_readers_of_one_bucket_and_of_one_named_bucket_differ_in_their_order_alone() -> None:
    """A named bucket has its own address, so that other buckets may be added or removed."""
    plain, named = SampleOrder({"": 9}, 3, 0), SampleOrder({"8x8": 9}, 3, 0)
    assert plain.steps_per_epoch == named.steps_per_epoch == 3
    assert [plain.read(i) for i in range(3)] != [named.read(i) for i in range(3)]
