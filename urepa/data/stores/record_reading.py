"""Reading a finished store: each record's offset is read once from LMDB's pages, then records are read without LMDB.

LMDB's own get causes one page fault after another, which is slow if the page cache is cold; a loader that gets single
items is slow even if it is warm. A record's value is contiguous in data.mdb, so preadv reads it directly.

Shapes: R records, B bytes a record.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from urepa.core.errors import UserError
from urepa.core.files import DAMAGED, read_json
from urepa.data.lists.samples import Keys
from urepa.data.stores.digests import MEAN_TOKEN, STATISTICS, Digests, blake2b
from urepa.data.stores.lmdb_pages import HIDDEN, SUM_KEY, Index, hidden_rows, key_digests, records, rows_of
from urepa.data.stores.lmdb_store import Part, part_of
from urepa.data.stores.record_format import decode, record_bytes
from urepa.data.stores.record_keys import is_mirrored, key_suffix, sample_id_of

PLACE = np.dtype([("file", "i4"), ("offset", "i8"), ("crc32", "i8")])  # crc32 is -1 without a digest


class Store:
    """A store opened for reading; indexed on first use. Threads and forked workers may share it.

    Records are read by sample id, whatever suffix the keys on disk have. `mirror` is the store of the mirror images'
    records, with the same keys; these are read by the key SAMPLE_ID/flip.
    """

    mirror: "Store | None" = None

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        """`manifest` replaces the manifest file while a store is being finished or adopted."""
        self.folder = folder
        file = folder / "manifest.json"
        if manifest is None and not file.is_file():
            raise UserError(f"{folder} is not a finished cache: it has no manifest.json")
        try:
            self.manifest: dict[str, Any] = read_json(file) if manifest is None else manifest
            self.shape = tuple(self.manifest["shape"])
            self.dtype = str(self.manifest["dtype"])
            self.parts = int(self.manifest.get("parts", 1))
            self.record_bytes = record_bytes(self.shape, self.dtype)
            self.key_suffix = key_suffix(self.manifest)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file} is damaged ({error!r}); put it back, or delete {folder} and make it again"
            ) from error
        self._open_parts: dict[int, _OpenPart] = {}
        self._opening = threading.Lock()
        self._digests: Digests | None = None

    @property
    def mark(self) -> Path:
        """A file whose modification time is that of the records."""
        return self.folder / "manifest.json"

    def _part(self, index: int) -> "_OpenPart":
        with self._opening:
            if index not in self._open_parts:
                folder = Part(index, self.parts).folder(self.folder)
                self._open_parts[index] = _OpenPart(folder, self.record_bytes)
            return self._open_parts[index]

    @property
    def digests(self) -> Digests | None:
        """The records' digests; None for a store made without digests. Raises UserError if the file that holds them is
        not the one that the manifest names."""
        if "digests_sha256" not in self.manifest:
            return None
        with self._opening:
            if self._digests is None:
                self._digests = Digests(self.folder, self.manifest["digests_sha256"])
            return self._digests

    def places(self, keys: list[str]) -> np.ndarray:
        """The file, offset and crc32 of each record [R], of type PLACE. Raises UserError if a record is missing, has
        another length, or has no digest in a store with digests."""
        mirrored = list(map(is_mirrored, keys))
        if not any(mirrored):
            return self._own_places(keys)
        assert self.mirror is not None, "only readers with data.flip draw mirror images"
        places_R, of_mirror_R = np.empty(len(keys), PLACE), np.array(mirrored)
        own = [key for key in keys if not is_mirrored(key)]
        places_R[~of_mirror_R] = self._own_places(own)
        theirs = [sample_id_of(key) for key in keys if is_mirrored(key)]
        places_R[of_mirror_R] = self.mirror.places(theirs)
        return places_R

    def _own_places(self, keys: list[str]) -> np.ndarray:
        places_R, digests_R = np.empty(len(keys), PLACE), self._key_digests(keys)
        for part, at in self._by_part(keys):
            opened = self._part(part)
            places_R["file"][at] = opened.file
            places_R["offset"][at] = opened.offsets([keys[i] for i in at], digests_R[at])
        places_R["crc32"] = -1
        if self.digests is not None:
            rows_R = self.digests.find(digests_R)
            if (rows_R < 0).any():
                key = keys[int(rows_R.argmin())]
                raise UserError(f"{self.folder}: record '{key}' has no digest; run stage=digest of urepa.preprocess")
            places_R["crc32"] = self.digests.crc32(rows_R)
        return places_R

    def _key_digests(self, keys: list[str]) -> np.ndarray:
        """Digests of the keys on disk: uint64 [R]."""
        return key_digests(f"{key}{self.key_suffix}" for key in keys)

    def _by_part(self, keys: list[str] | Keys) -> Iterator[tuple[int, np.ndarray]]:
        """Each part that holds some of the keys, with their indices."""
        parts_R = np.zeros(len(keys), dtype=np.int32)
        if self.parts > 1:
            parts_R[:] = np.fromiter((part_of(key, self.parts) for key in keys), np.int32, len(keys))
        for part in np.unique(parts_R):
            yield int(part), np.flatnonzero(parts_R == part)

    def fill(self, keys: list[str], raw_RB: np.ndarray) -> None:
        """Reads the records' bytes into `raw_RB` (uint8). Raises UserError if a record is missing or damaged."""
        places = self.places(keys).tolist()
        for file, offset, _ in places:  # the disk reads all of them ahead while the first is copied
            os.posix_fadvise(file, offset, self.record_bytes, os.POSIX_FADV_WILLNEED)
        for key, row, (file, offset, crc32) in zip(keys, raw_RB, places, strict=True):
            if os.preadv(file, [row.data], offset) != self.record_bytes:
                raise UserError(f"{self.folder}/data.mdb is truncated; copy it again, or delete it and make it again")
            if crc32 >= 0 and zlib.crc32(row) != crc32:
                raise UserError(
                    f"{self.folder_of(key)}: record '{sample_id_of(key)}' has changed since it was written "
                    "(its crc32 differs); copy the store again, or delete it and make it again (stage=verify of "
                    "urepa.preprocess checks all of its records)"
                )

    def folder_of(self, key: str) -> Path:
        """The folder of the store that holds this record: this store or its mirror."""
        return self.mirror.folder if self.mirror is not None and is_mirrored(key) else self.folder

    def tensor(self, keys: list[str], raw_RB: np.ndarray | None = None) -> torch.Tensor:
        """The records [R, *shape]: fp16 as stored, int8 as float32. They are read into the memory `raw_RB` if given."""
        buffer = np.empty((len(keys), self.record_bytes), dtype=np.uint8) if raw_RB is None else raw_RB
        self.fill(keys, buffer)
        return decode(buffer, self.shape, self.dtype)

    def read(self, keys: list[str]) -> np.ndarray:
        """The records [R, *shape] as float32."""
        return self.tensor(keys).float().numpy()

    def keys(self) -> Iterator[str]:
        """The sample ids of all records, part by part, without those of the mirror."""
        for part in range(self.parts):
            names = (key for key, _, _ in records(Part(part, self.parts).folder(self.folder)))
            yield from (name.removesuffix(self.key_suffix) for name in names if not name.startswith(HIDDEN))

    def indices(self) -> list[tuple[Index, int]]:
        """The index of every part's records and its file descriptor, without the mirror."""
        return [(part.index, part.file) for part in map(self._part, range(self.parts))]

    def count(self) -> int:
        """The number of records, without those of the mirror."""
        return sum(len(index) for index, _ in self.indices())

    def missing(self, keys: Keys) -> list[str]:
        """The keys without a record."""
        absent_R, digests_R = np.empty(len(keys), dtype=bool), keys.digests(self.key_suffix)
        for part, at in self._by_part(keys):
            absent_R[at] = rows_of(digests_R[at], self._part(part).index.digests_R) < 0
        return keys.where(absent_R)

    def missing_digests(self, keys: Keys) -> list[str]:
        """The keys without a digest; empty for a store without digests."""
        return [] if self.digests is None else keys.where(self.digests.find(keys.digests(self.key_suffix)) < 0)

    def record_digests(self, keys: Keys) -> np.ndarray:
        """Both halves of the records' blake2b: uint64 [R,2]. Every record must have a digest."""
        return self._blake2b(keys.digests(self.key_suffix))

    def _blake2b(self, digests_R: np.ndarray) -> np.ndarray:
        """As `record_digests`, from the digests of the keys on disk."""
        assert self.digests is not None
        rows_R = self.digests.find(digests_R)
        assert (rows_R >= 0).all(), "checked by open_store"
        return self.digests.blake2b(rows_R)

    def first_changed(self, keys: list[str], raw_RB: np.ndarray) -> str | None:
        """The key of the first record whose bytes in `raw_RB` do not match the stored blake2b; None if all match or no
        digests are stored. The keys must all be of mirror images, or none."""
        if self.mirror is not None and is_mirrored(keys[0]):
            return self.mirror.first_changed(list(map(sample_id_of, keys)), raw_RB)
        if self.digests is None:
            return None
        differs_R = (self._blake2b(self._key_digests(keys)) != blake2b(row.data for row in raw_RB)).any(1)
        return keys[int(differs_R.argmax())] if differs_R.any() else None

    def mean_token(self) -> torch.Tensor:
        """The teacher's mean token over the training set [D], from the file beside the records. Raises UserError if it
        is not the file that the manifest names."""
        return self._read_beside(MEAN_TOKEN, "mean_token_sha256")

    def statistics(self) -> torch.Tensor:
        """Sums over the training set's records, float64, from the file beside them (`urepa.data.image_statistics`).
        Raises UserError if it is not the file that the manifest names."""
        return self._read_beside(STATISTICS, "statistics_sha256")

    def _read_beside(self, name: str, key: str) -> torch.Tensor:
        """The array in a file beside the records, whose SHA-256 is the manifest's entry `key`."""
        file = self.folder / name
        if not file.is_file():
            raise UserError(f"there is no {file}; put it back, or delete {self.folder} and make it again")
        content, known = file.read_bytes(), self.manifest.get(key)
        if known not in (None, hashlib.sha256(content).hexdigest()):
            raise UserError(
                f"{file} is not the file that manifest.json names; put it back, or delete {self.folder} and make it "
                "again"
            )
        try:
            return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        except DAMAGED as error:  # a store of an earlier version, whose manifest does not name the file
            raise UserError(
                f"{file} is damaged ({error}); put it back, or delete {self.folder} and make it again"
            ) from error

    def require_files_beside(self) -> None:
        """Raises UserError if digests.npy, the mean token or the statistics are not what the manifest names."""
        _ = self.digests
        if "mean_token_sha256" in self.manifest:
            self.mean_token()
        if "statistics_sha256" in self.manifest:
            self.statistics()

    def hidden_rows(self, prefix: str) -> Iterator[bytes]:
        """The values of all parts' hidden rows with this prefix, in the order of writing within a part."""
        for part in range(self.parts):
            yield from hidden_rows(Part(part, self.parts).folder(self.folder), prefix)

    def token_sum(self) -> np.ndarray | None:
        """The sum of the training tokens and their number [D+1]; None if the writer stored no sum."""
        shares = [np.frombuffer(share) for share in self.hidden_rows(SUM_KEY)]
        return np.sum(shares, axis=0) if shares else None

    def close(self) -> None:
        """Closes the files."""
        if self.mirror is not None:
            self.mirror.close()
        for part in self._open_parts.values():
            os.close(part.file)
        self._open_parts.clear()
        self._digests = None


class _OpenPart:
    """One open data.mdb and the index of its records."""

    def __init__(self, folder: Path, length: int) -> None:
        self.folder, self.length = folder, length
        self.index = Index(folder)
        self.file = os.open(folder / "data.mdb", os.O_RDONLY)

    def offsets(self, keys: list[str], digests_R: np.ndarray) -> np.ndarray:
        """The records' offsets in data.mdb."""
        rows_R = rows_of(digests_R, self.index.digests_R)
        if (rows_R < 0).any():
            raise UserError(f"{self.folder} has no record '{keys[int(rows_R.argmin())]}'; delete it and make it again")
        lengths_R = self.index.lengths_R[rows_R]
        if (lengths_R != self.length).any():
            at = int((lengths_R != self.length).argmax())
            raise UserError(
                f"{self.folder}: record '{keys[at]}' is damaged or has another data type: it has {lengths_R[at]} bytes "
                f"instead of {self.length}; make it again"
            )
        return self.index.offsets_R[rows_R]
