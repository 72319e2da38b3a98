"""Digests of a store's records: crc32, which is checked on every read, and blake2b, which the stage `verify` checks.

A row has four uint64: the digest of the record's key, the crc32 of its bytes, and the two halves of their blake2b of
16 bytes. Rows are written in the same transaction as their records. A finished store has all rows in digests.npy
beside its manifest, sorted by key and stored column by column, so that the file is mapped into memory, not loaded. The
manifest has the SHA-256 of that file.

Shapes: R records, Q records that are looked up.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from urepa.core.errors import UserError
from urepa.data.stores.lmdb_pages import last_rows, rows_of

FILE = "digests.npy"
MEAN_TOKEN = "mean_token.npy"
STATISTICS = "statistics.npy"
IN_MANIFEST = {  # the SHA-256 of files beside it
    "digests_sha256": FILE,
    "mean_token_sha256": MEAN_TOKEN,
    "statistics_sha256": STATISTICS,
}
KEY, CRC32, BLAKE2B = 0, 1, slice(2, 4)  # columns
COLUMNS = 4


def blake2b(contents: Iterable[bytes | memoryview]) -> np.ndarray:
    """The 16-byte digest of each record's bytes: uint64 [R,2]."""
    digests = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def digest_rows(keys_R: np.ndarray, contents: Sequence[bytes]) -> np.ndarray:
    """The rows [R,4] of records, from the digests of their keys and their bytes."""
    out = np.empty((len(keys_R), COLUMNS), dtype="<u8")
    out[:, KEY] = keys_R
    out[:, CRC32] = [zlib.crc32(content) for content in contents]
    out[:, BLAKE2B] = blake2b(contents)
    return out


def newest(rows_R4: np.ndarray) -> np.ndarray:
    """The last row of each key, sorted by key. `rows_R4` are in the order in which they were written."""
    return rows_R4[last_rows(rows_R4[:, KEY])]


def as_file(rows_R4: np.ndarray) -> bytes:
    """The bytes of digests.npy: rows sorted by key, stored column by column."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(rows_R4.T), allow_pickle=False)
    return content.getvalue()


def manifest_entries(files: Mapping[str, bytes]) -> dict[str, str]:
    """A manifest's entries for the files beside it: their SHA-256. `files` are contents by name."""
    return {key: hashlib.sha256(files[name]).hexdigest() for key, name in IN_MANIFEST.items() if name in files}


def sha256_of(file: Path) -> str | None:
    """The SHA-256 of a file's content; None if there is no such file."""
    if not file.is_file():
        return None
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Digests:
    """A finished store's digests.npy, mapped into memory."""

    def __init__(self, folder: Path, sha256: str) -> None:
        """Raises UserError if the file is missing or does not have this SHA-256."""
        file = folder / FILE
        if sha256_of(file) != sha256:
            raise UserError(
                f"{file} is missing or is not the file that manifest.json names; put it back, or make it again with "
                "stage=digest of urepa.preprocess"
            )
        self._columns_4R = np.load(file, mmap_mode="r", allow_pickle=False)

    @property
    def rows_R4(self) -> np.ndarray:
        """All rows, sorted by key."""
        return self._columns_4R.T

    def find(self, keys_Q: np.ndarray) -> np.ndarray:
        """The row index of each key digest [Q]; -1 for keys without a row."""
        return rows_of(keys_Q, self._columns_4R[KEY])

    def crc32(self, rows_Q: np.ndarray) -> np.ndarray:
        """The crc32 of the records in these rows: int64 [Q]."""
        return self._columns_4R[CRC32][rows_Q].astype(np.int64)

    def blake2b(self, rows_Q: np.ndarray) -> np.ndarray:
        """The blake2b of the records in these rows: uint64 [Q,2]."""
        return self._columns_4R[BLAKE2B][:, rows_Q].T
