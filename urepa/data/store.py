"""LMDB stores of equally shaped fp16 tensors, keyed by sample id, each with a manifest beside it.

Layout: FOLDER/data.mdb and FOLDER/manifest.json; a value is the tensor's bytes (spec 000 §3.2, §3.3).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from urepa.errors import UserError
from urepa.files import sync_folder, write_whole


def write_store(
    folder: Path,
    records: Iterable[tuple[str, np.ndarray]],
    manifest: dict[str, Any],
    extra_files: Callable[[], dict[str, bytes]] = dict,
) -> None:
    """Writes a whole store beside `folder` and renames it there; a kill leaves nothing that counts.

    `manifest` gains `shape`, `dtype` and `count`; `extra_files` is asked after the last record.
    Raises ValueError on a record of another shape or with values that fp16 cannot hold.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    shape, count = None, 0
    # a map larger than any store: LMDB's file is sparse and grows with what is written
    with lmdb.open(str(temporary), map_size=2**42, subdir=True, sync=False, metasync=False) as env:
        txn = env.begin(write=True)
        for key, value in records:
            half = np.ascontiguousarray(value, dtype=np.float16)
            shape = half.shape if shape is None else shape
            if half.shape != shape:
                raise ValueError(f"record {key} has shape {half.shape}, the others {shape}")
            if not np.isfinite(half).all():
                raise ValueError(f"record {key} has values that are not finite in fp16")
            txn.put(key.encode(), half.tobytes())
            count += 1
            if count % 512 == 0:
                txn.commit()
                txn = env.begin(write=True)
        txn.commit()
        env.sync(True)
    if shape is None:
        raise ValueError(f"no records for {folder}")
    (temporary / "lock.mdb").unlink(missing_ok=True)
    for name, content in extra_files().items():
        write_whole(temporary / name, content)
    full = manifest | {"shape": list(shape), "dtype": "float16", "count": count}
    write_whole(temporary / "manifest.json", json.dumps(full, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    sync_folder(folder.parent)


class Store:
    """A store to read from, opened on first use so that a forked worker opens its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            raise UserError(f"{folder} is no cache: it has no manifest.json")
        self.manifest: dict[str, Any] = json.loads(manifest.read_text())
        self.shape = tuple(self.manifest["shape"])
        self._env: lmdb.Environment | None = None

    def read(self, keys: list[str]) -> np.ndarray:
        """The records [len(keys), *shape] as float32. A missing or truncated one is a UserError."""
        if self._env is None:
            try:
                self._env = lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False)
            except lmdb.Error as error:
                raise UserError(f"{self.folder} cannot be read ({error}); make it again") from error
        out = np.empty((len(keys), *self.shape), dtype=np.float32)
        with self._env.begin(buffers=True) as txn:
            for row, key in zip(out, keys, strict=True):
                value = txn.get(key.encode())
                if value is None:
                    raise UserError(f"{self.folder} has no record '{key}'; make the cache again")
                if len(value) != row.size * 2:
                    raise UserError(f"{self.folder}: record '{key}' is damaged; make the cache again")
                row[...] = np.frombuffer(value, dtype=np.float16).reshape(self.shape)
        return out

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None
