"""Digests of a store's records: crc32, which reading checks, and blake2b, which the stage `verify` checks.

A row is of four uint64: the digest of the record's key, the crc32 of its bytes, and the two halves of their blake2b of
16 bytes. Rows are written in the transaction of the records that they are of; once a store is finished, digests.npy
beside its manifest has them all, column by column and sorted by key, so that it is mapped into memory, not loaded. The
manifest has the SHA-256 of that file.

Shapes: R records, Q records that are asked for.
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
IN_MANIFEST = {"digests_sha256": FILE, "mean_token_sha256": MEAN_TOKEN}  # the SHA-256 of files beside it
KEY, CRC32, BLAKE2B = 0, 1, slice(2, 4)  # columns
COLUMNS = 4


def blake2b(contents: Iterable[bytes | memoryview]) -> np.ndarray:
    """Of records' bytes, each of 16 bytes: uint64 [R,2]."""
    digests = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def digest_rows(keys_R: np.ndarray, contents: Sequence[bytes]) -> np.ndarray:
    """The rows [R,4] of records with these digests of keys."""
    out = np.empty((len(keys_R), COLUMNS), dtype="<u8")
    out[:, KEY] = keys_R
    out[:, CRC32] = [zlib.crc32(content) for content in contents]
    out[:, BLAKE2B] = blake2b(contents)
    return out


def newest(rows_R4: np.ndarray) -> np.ndarray:
    """Of rows in the order in which they were written the last one of each key, sorted by key."""
    return rows_R4[last_rows(rows_R4[:, KEY])]


def as_file(rows_R4: np.ndarray) -> bytes:
    """What digests.npy holds: rows sorted by key, column by column."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(rows_R4.T), allow_pickle=False)
    return content.getvalue()


def in_manifest(files: Mapping[str, bytes]) -> dict[str, str]:
    """What a manifest has of the files beside it, given by name."""
    return {key: hashlib.sha256(files[name]).hexdigest() for key, name in IN_MANIFEST.items() if name in files}


def sha256_of(file: Path) -> str | None:
    """Of a file's content; None where there is none."""
    if not file.is_file():
        return None
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Digests:
    """A finished store's digests.npy, mapped into memory."""

    def __init__(self, folder: Path, sha256: str) -> None:
        """Raises UserError if the file is gone or is not the one with this digest."""
        file = folder / FILE
        if sha256_of(file) != sha256:
            raise UserError(
                f"{file} is gone or not the one that its manifest.json names; put it back, or make it again with "
                "stage=digest of urepa.preprocess"
            )
        self._columns_4R = np.load(file, mmap_mode="r", allow_pickle=False)

    @property
    def rows_R4(self) -> np.ndarray:
        """All rows, sorted by key."""
        return self._columns_4R.T

    def find(self, keys_Q: np.ndarray) -> np.ndarray:
        """The rows of these digests of keys [Q], -1 for those that have none."""
        return rows_of(keys_Q, self._columns_4R[KEY])

    def crc32(self, rows_Q: np.ndarray) -> np.ndarray:
        """Of the records in these rows: int64 [Q]."""
        return self._columns_4R[CRC32][rows_Q].astype(np.int64)

    def blake2b(self, rows_Q: np.ndarray) -> np.ndarray:
        """Of the records in these rows: uint64 [Q,2]."""
        return self._columns_4R[BLAKE2B][:, rows_Q].T
