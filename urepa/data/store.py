"""LMDB stores of equally shaped tensors, keyed by sample id, each with a manifest beside it.

Layout: FOLDER/manifest.json and FOLDER/data.mdb (spec 000 §3.2, §3.3), or FOLDER/part-<i>of<n>/data.mdb where
several workers wrote one store: a record's part follows from its key, so parts are never merged. A store
counts once its manifest is there. Values are fp16, or int8 in groups of 128 with a scale each.

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
from typing import Any

import lmdb
import numpy as np

from urepa.draws import digest64
from urepa.errors import UserError
from urepa.files import sync_folder, write_whole

MAP_SIZE = 2**42  # larger than any store: LMDB's file is sparse and grows with what is written
GROUP = 128  # values that share a scale in int8
SUM_KEY = b"__sum_of_train_tokens__"


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
    """The part that a sample belongs to; latents and tokens of a sample lie in the same one."""
    return digest64("part", sample_id.removesuffix("_mid")) % count


def encode(value: np.ndarray, dtype: str) -> bytes:
    """A record's bytes. ValueError for values that the type cannot hold."""
    half = np.ascontiguousarray(value, dtype=np.float16)
    if not np.isfinite(half).all():
        raise ValueError("the record has values that are not finite in fp16")
    if dtype == "float16":
        return half.tobytes()
    groups_RG = np.asarray(value, dtype=np.float32).reshape(-1, GROUP)
    scale_R = (np.abs(groups_RG).max(1, keepdims=True) / 127).astype(np.float16)
    safe = np.where(scale_R == 0, 1, scale_R).astype(np.float32)
    codes = np.clip(np.rint(groups_RG / safe), -127, 127).astype(np.int8)
    return scale_R.tobytes() + codes.tobytes()


def decode(raw: Any, out: np.ndarray, dtype: str) -> bool:
    """Writes a record's bytes into `out` (float32); False if there are too few or too many."""
    if dtype == "float16":
        if len(raw) != 2 * out.size:
            return False
        out[...] = np.frombuffer(raw, dtype=np.float16).reshape(out.shape)
        return True
    groups = out.size // GROUP
    if len(raw) != 2 * groups + out.size:
        return False
    scale = np.frombuffer(raw, dtype=np.float16, count=groups).astype(np.float32)
    codes = np.frombuffer(raw, dtype=np.int8, offset=2 * groups).reshape(groups, GROUP)
    out[...] = (codes * scale[:, None]).reshape(out.shape)
    return True


class StoreWriter:
    """Writes one part of a store in batches; a batch is one durable transaction, there whole or not at all.

    Only one process may write a part: the second gets a UserError.
    """

    def __init__(self, store: Path, dtype: str = "float16", part: Part | None = None) -> None:
        self.folder = (Part() if part is None else part).folder(store)
        self.dtype = dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / ".writer.lock", "w")  # noqa: SIM115  held until close
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(
                f"{self.folder} is being written by another process; give each its own shard=i/n"
            ) from error
        self._env = lmdb.open(str(self.folder), map_size=MAP_SIZE, subdir=True)

    def has(self, key: str) -> bool:
        """Is this record there already?"""
        with self._env.begin() as txn:
            return txn.get(key.encode()) is not None

    def put(self, records: list[tuple[str, np.ndarray]], add_to_sum: np.ndarray | None = None) -> None:
        """A batch. `add_to_sum` [D+1] (a sum of tokens and their number) is added up in the same transaction."""
        with self._env.begin(write=True) as txn:
            for key, value in records:
                txn.put(key.encode(), encode(value, self.dtype))
            if add_to_sum is not None:
                before = txn.get(SUM_KEY)
                total = add_to_sum if before is None else add_to_sum + np.frombuffer(before, dtype=np.float64)
                txn.put(SUM_KEY, total.astype(np.float64).tobytes())

    def close(self) -> None:
        """Everything is on disk; the lock is free."""
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
) -> None:
    """Writes a whole fp16 store beside `folder` and renames it there; a kill leaves nothing that counts.

    `manifest` gains `shape`, `dtype` and `count`; `extra_files` is asked after the last record.
    Raises ValueError on a record of another shape or with values that fp16 cannot hold.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shape: tuple[int, ...] | None = None
    count = 0
    with StoreWriter(temporary) as writer:
        for batch in batches_of(records, 512):
            for key, value in batch:
                shape = value.shape if shape is None else shape
                if value.shape != shape:
                    raise ValueError(f"record {key} has shape {value.shape}, the others {shape}")
            writer.put(batch)
            count += len(batch)
    if shape is None:
        raise ValueError(f"no records for {folder}")
    (temporary / ".writer.lock").unlink()
    for name, content in extra_files().items():
        write_whole(temporary / name, content)
    full = manifest | {"shape": list(shape), "dtype": "float16", "count": count}
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


class Store:
    """A store to read from, opened on first use so that a forked worker opens its own."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        """`manifest` stands in for the file's while a store is being finished or adopted."""
        self.folder = folder
        file = folder / "manifest.json"
        if manifest is None and not file.is_file():
            raise UserError(f"{folder} is no finished cache: it has no manifest.json")
        self.manifest: dict[str, Any] = json.loads(file.read_text()) if manifest is None else manifest
        self.shape = tuple(self.manifest["shape"])
        self.dtype = str(self.manifest["dtype"])
        self.parts = int(self.manifest.get("parts", 1))
        self._envs: dict[int, lmdb.Environment] = {}

    def _env(self, part: int) -> lmdb.Environment:
        if part not in self._envs:
            path = Part(part, self.parts).folder(self.folder)
            try:
                env = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
            except lmdb.Error as error:
                raise UserError(f"{path} cannot be read ({error}); make it again") from error
            # a page beyond the end of the file would end the process with SIGBUS, not with an error
            needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if (path / "data.mdb").stat().st_size < needed:
                raise UserError(f"{path}/data.mdb is truncated; make it again, or copy it again")
            self._envs[part] = env
        return self._envs[part]

    def read(self, keys: list[str]) -> np.ndarray:
        """The records [len(keys), *shape] as float32. A missing or truncated one is a UserError."""
        out = np.empty((len(keys), *self.shape), dtype=np.float32)
        for row, key in zip(out, keys, strict=True):
            try:
                with self._env(part_of(key, self.parts)).begin(buffers=True) as txn:
                    value = txn.get(key.encode())
                    whole = value is not None and decode(value, row, self.dtype)
            except lmdb.Error as error:
                raise UserError(f"{self.folder} is damaged ({error}); make the cache again") from error
            if value is None:
                raise UserError(f"{self.folder} has no record '{key}'; make the cache again")
            if not whole:
                raise UserError(f"{self.folder}: record '{key}' is damaged; make the cache again")
        return out

    def keys(self) -> Iterator[str]:
        """All keys, part by part."""
        for part in range(self.parts):
            with self._env(part).begin() as txn:
                yield from (k.decode() for k in txn.cursor().iternext(values=False) if k != SUM_KEY)

    def token_sum(self) -> np.ndarray | None:
        """Sum of the training tokens and their number [D+1], where the writer kept it."""
        total = None
        for part in range(self.parts):
            with self._env(part).begin() as txn:
                raw = txn.get(SUM_KEY)
            if raw is not None:
                share = np.frombuffer(raw, dtype=np.float64)
                total = share if total is None else total + share
        return total

    def close(self) -> None:
        """Lets another reader in this process open it."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()
