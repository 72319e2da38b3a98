"""Reading a finished store: LMDB says once where each record lies, then records are read past it.

LMDB's own get is one page fault after another: slow where the page cache is cold, and through a per-item
loader slow where it is warm. A record's value is contiguous in data.mdb, so plain preadv fills a batch.

Shapes: R records, B bytes a record.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from urepa.data.lmdb_file import Index, records
from urepa.data.store import SUM_KEY, Part, decode, part_of, record_bytes
from urepa.errors import UserError

MIRRORED = "/flip"  # at a key's end: the record of the mirror image


class Store:
    """A store to read from; indexed on first use. Threads and forked workers may share it.

    `mirror` holds the mirror images' records under the same keys; they are asked for as KEY/flip.
    """

    mirror: "Store | None" = None

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        """`manifest` stands in for the file's while a store is being finished or adopted."""
        self.folder = folder
        file = folder / "manifest.json"
        if manifest is None and not file.is_file():
            raise UserError(f"{folder} is no finished cache: it has no manifest.json")
        try:
            self.manifest: dict[str, Any] = json.loads(file.read_text()) if manifest is None else manifest
            self.shape = tuple(self.manifest["shape"])
            self.dtype = str(self.manifest["dtype"])
            self.parts = int(self.manifest.get("parts", 1))
            self.record_bytes = record_bytes(self.shape, self.dtype)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({error!r}); put it back, or delete {folder} and make it again"
            ) from error
        self._open_parts: dict[int, _OpenPart] = {}
        self._opening = threading.Lock()  # LMDB refuses to open a file twice in one process

    @property
    def mark(self) -> Path:
        """A file that is as old as the records."""
        return self.folder / "manifest.json"

    def _part(self, index: int) -> "_OpenPart":
        with self._opening:
            if index not in self._open_parts:
                folder = Part(index, self.parts).folder(self.folder)
                self._open_parts[index] = _OpenPart(folder, self.record_bytes)
            return self._open_parts[index]

    def place(self, key: str) -> tuple[int, int]:
        """A record's open file and offset."""
        if key.endswith(MIRRORED):
            assert self.mirror is not None, "only readers with data.flip draw mirror images"
            return self.mirror.place(key.removesuffix(MIRRORED))
        part = self._part(part_of(key, self.parts))
        return part.file, part.offset(key)

    def fill(self, keys: list[str], raw_RB: np.ndarray) -> None:
        """Reads the records' bytes into `raw_RB` (uint8). A missing or damaged one is a UserError."""
        places = [self.place(key) for key in keys]
        for file, offset in places:  # the disk works on all of them while the first is copied
            os.posix_fadvise(file, offset, self.record_bytes, os.POSIX_FADV_WILLNEED)
        for row, (file, offset) in zip(raw_RB, places, strict=True):
            if os.preadv(file, [row.data], offset) != self.record_bytes:
                raise UserError(f"{self.folder}/data.mdb is truncated; copy it again, or delete it and make it again")

    def tensor(self, keys: list[str], raw_RB: np.ndarray | None = None) -> torch.Tensor:
        """The records [R, *shape]: fp16 as it is stored, int8 as float32. With `raw_RB` in that memory."""
        buffer = np.empty((len(keys), self.record_bytes), dtype=np.uint8) if raw_RB is None else raw_RB
        self.fill(keys, buffer)
        return decode(buffer, self.shape, self.dtype)

    def read(self, keys: list[str]) -> np.ndarray:
        """The records [R, *shape] as float32."""
        return self.tensor(keys).float().numpy()

    def keys(self) -> Iterator[str]:
        """All keys, part by part, without the mirror's."""
        for part in range(self.parts):
            names = (key for key, _, _ in records(Part(part, self.parts).folder(self.folder)))
            yield from (name for name in names if name != SUM_KEY)

    def count(self) -> int:
        """How many records there are, without the mirror's and without sums."""
        indices = [self._part(i).index for i in range(self.parts)]
        return sum(len(index) - (index.find(SUM_KEY) is not None) for index in indices)

    def missing(self, keys: list[str]) -> list[str]:
        """Those that have no record."""
        return [key for key in keys if self._part(part_of(key, self.parts)).index.find(key) is None]

    def mean_token(self) -> torch.Tensor:
        """The teacher's mean token over the training set [D], from the file beside the records."""
        file = self.folder / "mean_token.npy"
        if not file.is_file():
            raise UserError(f"there is no {file}; put it back, or delete {self.folder} and make it again")
        return torch.from_numpy(np.load(file, allow_pickle=False))

    def token_sum(self) -> np.ndarray | None:
        """Sum of the training tokens and their number [D+1], where the writer kept it."""
        shares = [share for i in range(self.parts) if (share := self._part(i).token_sum) is not None]
        return np.sum(shares, axis=0) if shares else None

    def close(self) -> None:
        """Lets go of the files."""
        if self.mirror is not None:
            self.mirror.close()
        for part in self._open_parts.values():
            os.close(part.file)
        self._open_parts.clear()


class _OpenPart:
    """One data.mdb: where its records lie, and the open file."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length
        self.index = Index(folder)
        self.file = os.open(folder / "data.mdb", os.O_RDONLY)
        place = self.index.find(SUM_KEY)
        self.token_sum = None if place is None else np.frombuffer(os.pread(self.file, place[1], place[0]))

    def offset(self, key: str) -> int:
        """Where the record begins in data.mdb."""
        place = self.index.find(key)
        if place is None:
            raise UserError(f"{self.folder} has no record '{key}'; delete it and make it again")
        if place[1] != self.length:
            raise UserError(
                f"{self.folder}: record '{key}' is damaged or of another type: it has {place[1]} bytes, "
                f"{self.length} are expected; make it again"
            )
        return place[0]
