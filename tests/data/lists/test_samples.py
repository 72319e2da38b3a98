"""Rows stored in arrays equal the rows of the list."""

from __future__ import annotations

import gc
import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from urepa.core import random_draws
from urepa.data.lists.samples import (
    Keys,
    Sample,
    Samples,
    digest_of,
    fixed_subset,
    read_split,
    sample_ids,
    write_split,
)

PLAIN = [
    Sample("train_cat_00", 0, "cat/00.png", "train"),
    Sample('ü, "quoted"', 7, "a\nb,c", "val"),
    Sample("", 0, "", "test"),
    *(Sample(f"n{i:03d}", i % 5, f"n{i:03d}.png", "train") for i in range(20)),
]


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    write_split(tmp_path / "list.csv", PLAIN)
    return read_split(tmp_path / "list.csv")


def test_a_list_is_read_as_it_was_written(samples: Samples) -> None:
    assert list(samples) == PLAIN
    assert samples == PLAIN
    assert samples != PLAIN[1:]
    assert samples != [*PLAIN[1:], PLAIN[0]]
    assert list(samples.ids()) == [s.sample_id for s in PLAIN]
    assert samples.class_ids().tolist() == [s.class_id for s in PLAIN]
    assert [samples[i] for i in (0, 5, -1)] == [PLAIN[i] for i in (0, 5, -1)]
    for at in (len(PLAIN), -len(PLAIN) - 1):
        with pytest.raises(IndexError):
            samples[at]


@pytest.mark.parametrize("at", [slice(3, 9), slice(None, None, -2), slice(30, 40), slice(0, 0)])
def test_slices_and_positions_and_masks_are_rows_too(samples: Samples, at: slice) -> None:
    assert samples[at] == PLAIN[at]
    assert samples[2:][at] == PLAIN[2:][at]
    positions = np.arange(len(PLAIN))[at]
    assert samples[positions] == PLAIN[at]
    mask = np.isin(np.arange(len(PLAIN)), positions)
    assert samples[mask] == [s for s, kept in zip(PLAIN, mask, strict=True) if kept]
    assert samples.filter(s.class_id == 2 for s in PLAIN) == [s for s in PLAIN if s.class_id == 2]
    assert Samples.concatenate([samples[at], PLAIN[:3]]) == PLAIN[at] + PLAIN[:3]


def test_mirrored_rows_have_the_mirror_images_keys(samples: Samples) -> None:
    mirrored = samples.as_mirrored()
    assert [s.key for s in mirrored[1:3]] == [f"{s.sample_id}/flip" for s in PLAIN[1:3]]
    assert list(Keys([samples[:2], mirrored[1:3]])) == [
        *(s.sample_id for s in PLAIN[:2]),
        *(f"{s.sample_id}/flip" for s in PLAIN[1:3]),
    ]
    assert [s.mirrored for s in samples[1:3]] == [False, False]


@pytest.mark.parametrize("form", ["list", "arrays"])
def test_orders_are_those_of_sorted_lists(samples: Samples, form: str) -> None:
    """Runs, probes and existing stores depend on these orders."""
    rows: Any = samples if form == "arrays" else PLAIN
    for n in (5, len(PLAIN), 100):
        assert (
            fixed_subset(rows, "probe", n)
            == sorted(PLAIN, key=lambda s: random_draws.unit_interval("probe", s.sample_id))[:n]
        )
    assert digest_of(rows) == f"{random_draws.digest64('list', *(s.sample_id for s in PLAIN)):016x}"
    assert digest_of(rows[:0]) == f"{random_draws.digest64('list'):016x}"
    assert list(sample_ids(rows)) == [s.sample_id for s in PLAIN]


def test_keys_are_of_several_lists(samples: Samples) -> None:
    keys, expected = Keys([samples[:3], samples[5:]]), [s.sample_id for s in PLAIN[:3] + PLAIN[5:]]
    assert list(keys) == expected
    assert len(keys) == len(expected)
    for suffix in ("", "_mid"):
        assert keys.digests(suffix).tolist() == [random_draws.digest64("key", f"{key}{suffix}") for key in expected]
    assert keys.where(np.arange(len(expected)) % 7 == 1) == expected[1::7]
    rows = [hashlib.blake2b(f"{s.sample_id}\0{s.class_id}\0{s.split}".encode(), digest_size=16) for s in PLAIN]
    assert samples.row_digests().tobytes() == b"".join(row.digest() for row in rows)


@pytest.mark.slow
def test_a_row_takes_a_few_dozen_bytes_more_than_its_text(tmp_path: Path) -> None:
    """A Sample object with its strings takes 290 bytes."""
    rows = 30_000
    text = [f"train_n{i % 1000:08d}_{i:07d},{i % 1000},train/n{i % 1000:08d}/{i:07d}.JPEG,train" for i in range(rows)]
    (tmp_path / "list.csv").write_text("\n".join(["sample_id,class_id,path,split", *text]) + "\n")
    length = sum(len(f"train_n{0:08d}_{0:07d}") + len(f"train/n{0:08d}/{0:07d}.JPEG") for _ in range(rows)) / rows
    del text
    gc.collect()
    tracemalloc.start()
    samples = read_split(tmp_path / "list.csv")
    kept, peak = (size / rows for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert len(samples) == rows
    assert kept < length + 45
    assert peak < 2 * (length + 45)


@pytest.mark.slow
def test_keys_are_not_all_in_memory_at_once() -> None:
    """A list of them would take 64 bytes per key."""
    rows = 100_000
    samples = Samples.of_rows((f"n{i:08d}", 0, "", "train") for i in range(rows))
    tracemalloc.start()
    digests_R = Keys([samples]).digests("_mid")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(digests_R) == rows
    assert peak < 32 * rows
