"""LMDB stores of equally shaped tensors, keyed by sample id, each with a manifest beside it.

Layout: FOLDER/manifest.json and FOLDER/data.mdb, or FOLDER/part-<i>of<n>/data.mdb where
several workers wrote one store: a record's part follows from its key, so parts are never merged. A store is
finished once its manifest exists. The bytes of a record: `urepa.data.stores.record_format`.

Shapes: R records, G groups of a record's last dimension.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import lmdb
import numpy as np

from urepa.core.errors import UserError
from urepa.core.files import clear_leftovers, raise_full_disk_as_oserror, sync_folder, write_whole
from urepa.core.random_draws import digest64
from urepa.data.stores import digests
from urepa.data.stores.lmdb_pages import DIGESTS, HIDDEN, SUM_KEY, Index, key_digests, rows_of
from urepa.data.stores.record_format import encode

MAP_SIZE = 2**42  # larger than any store: LMDB's file is sparse and grows with what is written


@dataclass(frozen=True)
class Part:
    """One worker's share of a store: part `index` of `count`."""

    index: int = 0
    count: int = 1

    def folder(self, store: Path) -> Path:
        return store if self.count == 1 else store / f"part-{self.index}of{self.count}"

    def holds(self, sample_id: str) -> bool:
        return part_of(sample_id, self.count) == self.index


def part_of(sample_id: str, count: int) -> int:
    """The part that a sample belongs to; a sample's latents and tokens lie in the same part. (A suffix "_mid" is
    ignored, as in earlier versions, so that their stores in parts stay readable.)"""
    return digest64("part", sample_id.removesuffix("_mid")) % count


def only_writer(folder: Path) -> TextIO:
    """Makes a part's folder and locks it until the returned file is closed. Raises UserError if another process holds
    the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".writer.lock", "w")  # noqa: SIM115  the caller closes it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise UserError(f"{folder} is being written by another process; give each its own shard=i/n") from error
    clear_leftovers(folder)
    return lock


class StoreWriter:
    """Writes one part of a store in batches. A batch is one durable transaction: it is written whole or not at all.

    Raises UserError if another process is writing the same part.
    """

    def __init__(self, store: Path, dtype: str = "float16", part: Part | None = None) -> None:
        self.folder = (Part() if part is None else part).folder(store)
        self.dtype = dtype
        self._lock = only_writer(self.folder)
        file = self.folder / "data.mdb"  # empty if a build was killed before LMDB's first page was written
        self._before = Index(self.folder) if file.exists() and file.stat().st_size else None
        self._env = self._open(file)
        self._puts = self._count_puts()

    def _open(self, file: Path) -> lmdb.Environment:
        """Opens LMDB's environment. If that fails (a full disk), removes the incomplete file."""
        with raise_full_disk_as_oserror(file):
            try:
                return lmdb.open(str(self.folder), map_size=MAP_SIZE, subdir=True)
            except lmdb.Error:
                if self._before is None:
                    file.unlink(missing_ok=True)
                self._lock.close()
                raise

    def _count_puts(self) -> int:
        """The number of puts that wrote digests, in this process or earlier ones."""
        after = f"{DIGESTS}:".encode()  # a colon comes after every digit
        with self._env.begin() as txn, txn.cursor() as cursor:
            there = cursor.prev() if cursor.set_range(after) else cursor.last()
            key = cursor.key().decode() if there else ""
        return int(key.removeprefix(DIGESTS)) + 1 if key.startswith(DIGESTS) else 0

    def missing(self, keys: list[str]) -> list[str]:
        """The keys without a record yet."""
        new = keys
        if self._before is not None:
            rows_Q = rows_of(key_digests(keys), self._before.digests_R)
            new = [key for key, row in zip(keys, rows_Q, strict=True) if row < 0]
        with self._env.begin(buffers=True) as txn:
            return [key for key in new if txn.get(key.encode()) is None]

    def put(self, records: list[tuple[str, np.ndarray]], add_to_sum: np.ndarray | None = None) -> np.ndarray:
        """Writes a batch and returns the rows of its digests [R,4]. The same transaction writes these rows and adds
        `add_to_sum` [D+1] (a sum of tokens and their number) to the stored sum. Raises ValueError for values that the
        data type cannot hold."""
        assert not any(key.startswith(HIDDEN) for key, _ in records)
        contents: list[bytes] = []
        for key, value in records:
            try:
                contents.append(encode(value, self.dtype))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        rows_R4 = digests.digest_rows(key_digests(key for key, _ in records), contents)
        with raise_full_disk_as_oserror(self.folder), self._env.begin(write=True) as txn:
            for (key, _), content in zip(records, contents, strict=True):
                txn.put(key.encode(), content)
            txn.put(f"{DIGESTS}{self._puts:012d}".encode(), rows_R4.tobytes())  # a record's last row counts
            if add_to_sum is not None:
                before = txn.get(SUM_KEY.encode())
                total = add_to_sum if before is None else add_to_sum + np.frombuffer(before, dtype=np.float64)
                txn.put(SUM_KEY.encode(), total.astype(np.float64).tobytes())
        self._puts += 1
        return rows_R4

    def close(self) -> None:
        """Closes LMDB's environment, with everything on disk, and releases the lock."""
        self._env.close()
        (self.folder / "lock.mdb").unlink(missing_ok=True)
        self._lock.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_store(
    folder: Path,
    records: Iterable[tuple[str, np.ndarray]],
    manifest: dict[str, Any],
    extra_files: Callable[[], dict[str, bytes]] = dict,
    batch_size: int = 512,
) -> None:
    """Writes a whole fp16 store beside `folder` and renames it there; a killed process leaves no unfinished store.
    `batch_size`: records in memory, one transaction.

    `shape`, `dtype`, `count` and digests are added to `manifest`; `extra_files` is called after the last record.
    Raises ValueError on a record of another shape or with values that fp16 cannot hold.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shape: tuple[int, ...] | None = None
    rows: list[np.ndarray] = []
    with StoreWriter(temporary) as writer:
        for batch in batches_of(records, batch_size):
            for key, value in batch:
                shape = value.shape if shape is None else shape
                if value.shape != shape:
                    raise ValueError(f"record {key} has shape {value.shape}, the others {shape}")
            rows.append(writer.put(batch))
    if shape is None:
        raise ValueError(f"no records for {folder}")
    (temporary / ".writer.lock").unlink()
    rows_R4 = digests.newest(np.concatenate(rows))
    files = {digests.FILE: digests.as_file(rows_R4)} | extra_files()
    for name, content in files.items():
        write_whole(temporary / name, content)
    full = (
        manifest | {"shape": list(shape), "dtype": "float16", "count": len(rows_R4)} | digests.manifest_entries(files)
    )
    write_whole(temporary / "manifest.json", json.dumps(full, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    sync_folder(folder.parent)


def batches_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items; the last may be shorter."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
