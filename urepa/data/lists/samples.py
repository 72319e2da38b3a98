"""The rows of a track's lists: millions of rows are stored in a few arrays, and a `Sample` is made on access.

Shapes: R rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, compress
from pathlib import Path
from typing import Any, overload

import numpy as np

from urepa.core import random_draws
from urepa.core.files import write_whole
from urepa.data.stores.lmdb_store import batches_of
from urepa.data.stores.record_keys import record_key

FIELDS = ("sample_id", "class_id", "path", "split")
CHUNK = 8192  # rows that are hashed together
Row = tuple[str, int, str, str]  # its FIELDS


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a split; `mirrored` if a training step uses its mirror image."""

    sample_id: str
    class_id: int
    path: str
    split: str
    mirrored: bool = False

    @property
    def key(self) -> str:
        """The key of its records: its latents and each teacher's tokens."""
        return record_key(self.sample_id, self.mirrored)


class _Texts:
    """Strings as concatenated UTF-8."""

    def __init__(self) -> None:
        self.content, self.ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self.content += text.encode()
        self.ends.append(len(self.content))

    def __getitem__(self, row: int) -> str:
        return self.content[self.ends[row] : self.ends[row + 1]].decode()


class _Table:
    """The fields of rows, column by column. The few names of splits are stored once each."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.ids, self.paths, self.class_ids = _Texts(), _Texts(), array("q")
        self.split_of, numbers = array("i"), dict[str, int]()
        for sample_id, class_id, path, split in rows:
            self.ids.append(sample_id)
            self.paths.append(path)
            self.class_ids.append(class_id)
            self.split_of.append(numbers.setdefault(split, len(numbers)))
        self.splits = list(numbers)


class Samples(Sequence[Sample]):
    """Rows of lists, in order: about 100 bytes each. A slice, an array of positions or a mask of all rows gives Samples
    over the same arrays; a number gives the Sample."""

    def __init__(self, table: _Table, rows_R: np.ndarray, mirrored: bool = False) -> None:
        self._table, self._rows_R, self._mirrored = table, rows_R, mirrored
        self._key_digests: dict[str, np.ndarray] = {}

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> "Samples":
        """Samples from an iterable of rows."""
        table = _Table(rows)
        return cls(table, np.arange(len(table.class_ids), dtype=np.int32))

    @classmethod
    def concatenate(cls, parts: Iterable[Sequence[Sample]]) -> "Samples":
        """The rows of several lists, one list after the other, none of them mirrored."""
        return cls.of_rows((s.sample_id, s.class_id, s.path, s.split) for s in chain.from_iterable(parts))

    def as_mirrored(self) -> "Samples":
        """The same rows, all mirrored."""
        return Samples(self._table, self._rows_R, mirrored=True)

    def filter(self, wanted: Iterable[bool]) -> "Samples":
        """The rows for which the flag is true."""
        return self[np.fromiter(wanted, bool, len(self))]

    def ids(self) -> Iterator[str]:
        """The sample ids."""
        return (content.decode() for content in self._ids())

    def record_keys(self) -> Iterator[str]:
        """The keys of the samples' records."""
        return (record_key(i, self._mirrored) for i in self.ids())

    def _ids(self) -> Iterator[bytearray]:
        content, ends = self._table.ids.content, self._table.ids.ends
        return (content[ends[row] : ends[row + 1]] for row in map(int, self._rows_R))

    def key_digests(self, suffix: str) -> np.ndarray:
        """`lmdb_pages.key_digests` of SAMPLE_ID + suffix [R]: hashed once, in Python, at a microsecond each."""
        assert not self._mirrored, "a mirrored store has plain keys"
        if suffix not in self._key_digests:
            ending = suffix.encode()
            self._key_digests[suffix] = digests_of((b"key\x1f" + i + ending for i in self._ids()), 8)[:, 0]
        return self._key_digests[suffix]

    def row_digests(self) -> np.ndarray:
        """The 16-byte blake2b of each row's id, class and split, separated by zero bytes, as uint64 [R,2]."""
        table = self._table

        @cache
        def ending(class_id: int, split: int) -> bytes:
            return f"\0{class_id}\0{table.splits[split]}".encode()

        kinds = ((table.class_ids[row], table.split_of[row]) for row in map(int, self._rows_R))
        return digests_of((i + ending(*kind) for i, kind in zip(self._ids(), kinds, strict=True)), 16)

    def class_ids(self) -> np.ndarray:
        """The class ids [R], int64."""
        return np.frombuffer(self._table.class_ids, dtype=np.int64)[self._rows_R]

    def __len__(self) -> int:
        return len(self._rows_R)

    @overload
    def __getitem__(self, at: int) -> Sample: ...

    @overload
    def __getitem__(self, at: slice | np.ndarray) -> "Samples": ...

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice | np.ndarray):
            return Samples(self._table, self._rows_R[at], self._mirrored)
        table, row = self._table, int(self._rows_R[at])
        split = table.splits[table.split_of[row]]
        return Sample(table.ids[row], table.class_ids[row], table.paths[row], split, self._mirrored)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


class Keys:
    """The keys of samples' records, each made on access."""

    def __init__(self, parts: Iterable[Samples]) -> None:
        """The keys of the lists `parts`, one list after the other."""
        self._parts = list(parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[str]:
        return (key for part in self._parts for key in part.record_keys())

    def digests(self, suffix: str = "") -> np.ndarray:
        """The digest of every key followed by the store's suffix: uint64 [R]."""
        return np.concatenate([part.key_digests(suffix) for part in self._parts])

    def where(self, chosen_R: np.ndarray) -> list[str]:
        """The keys where the mask is true."""
        return list(compress(self, chosen_R)) if chosen_R.any() else []


def digests_of(contents: Iterable[bytes | bytearray], size: int) -> np.ndarray:
    """The blake2b digest of each item, of `size` bytes (a multiple of 8), computed in chunks: uint64 [R,size/8]."""
    chunks = (
        b"".join([hashlib.blake2b(content, digest_size=size).digest() for content in chunk])
        for chunk in batches_of(contents, CHUNK)
    )
    return np.frombuffer(bytearray().join(chunks), dtype="<u8").reshape(-1, size // 8)


def sample_ids(samples: Sequence[Sample]) -> Iterator[str]:
    """The samples' ids, from `Samples` or any other sequence."""
    return samples.ids() if isinstance(samples, Samples) else (s.sample_id for s in samples)


def fixed_order(samples: Sequence[Sample], purpose: str) -> np.ndarray:
    """A fixed pseudo-random order of samples, as positions [R], which depends only on their ids."""
    drawn_R = np.fromiter(
        (random_draws.unit_interval(purpose, i) for i in sample_ids(samples)), np.float64, len(samples)
    )
    return np.argsort(drawn_R, kind="stable")


def fixed_subset(samples: Sequence[Sample], purpose: str, n: int) -> list[Sample]:
    """The first `n` samples (all, if there are fewer) in the order of `fixed_order`."""
    return [samples[int(i)] for i in fixed_order(samples, purpose)[:n]]


def digest_of(samples: Sequence[Sample]) -> str:
    """The digest of a list's ids, in its order: `random_draws.digest64("list", *ids)` in hexadecimal."""
    digest = hashlib.blake2b(b"list", digest_size=8)
    for sample_id in sample_ids(samples):
        digest.update(b"\x1f" + sample_id.encode())
    return f"{int.from_bytes(digest.digest(), 'little'):016x}"


def write_split(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a split as CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows((s.sample_id, s.class_id, s.path, s.split) for s in samples)
    write_whole(path, text.getvalue())


def read_split(path: Path) -> Samples:
    """Reads a split from CSV."""
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        return Samples.of_rows((r["sample_id"], int(r["class_id"]), r["path"], r["split"]) for r in rows)
