"""Where an LMDB file's records lie, from the pages of its B+ tree alone.

`record_reading` reads values at their offset in the file, without LMDB. The lmdb package has no call that returns this
offset: it lists keys without reading their values (`iternext(values=False)`, which touches one page of each), but a
read of a value touches all of its pages. Branch and leaf pages, which hold the offsets, are a thousandth of a token
store. The format is data version 1, that of all LMDB 0.9 (MDB_meta, MDB_page and MDB_node in its mdb.c).
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from urepa.core.errors import UserError
from urepa.core.random_draws import digest64

SUM_KEY = "__sum_of_train_tokens__"
DIGESTS = "__digests_of_records__"  # followed by the number of the put
HIDDEN = (SUM_KEY, DIGESTS)  # prefixes of the keys of rows that are not records but describe them
MAGIC, VERSION = 0xBEEFC0DE, 1
DATABASE = "IHHQQQQQ"  # page size or padding, flags, depth, branch, leaf and overflow pages, entries, root
META = struct.Struct(f"<16xII8xQ{DATABASE}{DATABASE}QQ")  # magic, version, map size, free, main, last page, transaction
PAGE = struct.Struct("<QHHHH")  # number, padding, flags, end of the pointers, end of the gap after them
NODE = struct.Struct("<HHHH")  # low and high half of a length or page number, flags, key length
BRANCH, LEAF = 1, 2  # flags of a page
ELSEWHERE = 1  # flag of a node whose value lies on pages of its own
EMPTY = 2**64 - 1  # the root of a tree without pages


def key_digests(keys: Iterable[str]) -> np.ndarray:
    """`draws.digest64("key", key)` of each, uint64."""
    digests = b"".join(hashlib.blake2b(b"key\x1f" + key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8")


def rows_of(wanted_Q: np.ndarray, sorted_R: np.ndarray) -> np.ndarray:
    """The index of each of `wanted_Q` in `sorted_R`: int64 [Q], -1 for those that are not in it."""
    if not len(sorted_R):
        return np.full(len(wanted_Q), -1)
    at_Q = np.minimum(np.searchsorted(sorted_R, wanted_Q), len(sorted_R) - 1)
    return np.where(sorted_R[at_Q] == wanted_Q, at_Q, -1)


def last_rows(keys_R: np.ndarray) -> np.ndarray:
    """The index of the last row of each key, in the order of the keys."""
    order = np.argsort(keys_R, kind="stable")
    keys = keys_R[order]
    return order[np.append(keys[1:] != keys[:-1], np.full(min(len(keys), 1), True))]


class Index:
    """An LMDB file's records without its hidden rows, sorted by the digests of their keys: `digests_R` (uint64), and
    where their values begin (`offsets_R`) and how long they are (`lengths_R`). 20 bytes a record."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if there is no such file or if it is truncated or damaged."""
        digests, offsets, lengths = array("Q"), array("q"), array("i")
        for key, offset, length in records(folder):
            if not key.startswith(HIDDEN):
                digests.append(digest64("key", key))
                offsets.append(offset)
                lengths.append(length)
        order = np.argsort(np.asarray(digests))
        self.digests_R = np.asarray(digests)[order]
        self.offsets_R, self.lengths_R = np.asarray(offsets)[order], np.asarray(lengths)[order]

    def __len__(self) -> int:
        return len(self.digests_R)

    def find(self, key: str) -> tuple[int, int] | None:
        """The offset of the key's value in the file, and its length; None if there is no such key."""
        at = int(rows_of(key_digests([key]), self.digests_R)[0])
        return None if at < 0 else (int(self.offsets_R[at]), int(self.lengths_R[at]))


def has_records(folder: Path) -> bool:
    """Whether FOLDER/data.mdb exists and holds a record. Raises UserError if it is damaged."""
    file = folder / "data.mdb"
    return file.is_file() and file.stat().st_size > 0 and len(Index(folder)) > 0


def hidden_rows(folder: Path, prefix: str) -> Iterator[bytes]:
    """The values of the rows whose keys begin with `prefix`, in the order of the keys."""
    with open(folder / "data.mdb", "rb") as file:
        for key, offset, length in records(folder):
            if key.startswith(prefix):
                yield os.pread(file.fileno(), length, offset)


def records(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Key, offset and length of every record of FOLDER/data.mdb, in the order of the keys."""
    path = folder / "data.mdb"
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy it again, or make it again") from error
    try:
        page_size, root = _newest_tree(file, path)
        if root != EMPTY:
            yield from _leaf_records(file, page_size, root)
    except (ValueError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}); copy it again, or delete it and make it again") from error
    finally:
        os.close(file)


def _newest_tree(file: int, path: Path) -> tuple[int, int]:
    """The page size and the root page, from the newer of the two meta pages."""
    metas = []
    page_size = META.unpack(os.pread(file, META.size, 0))[3]
    for at in (0, page_size):
        magic, version, _, _, *_, root, last_page, transaction = META.unpack(os.pread(file, META.size, at))
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError("it does not have the format of LMDB 0.9")
        metas.append((transaction, root, last_page))
    _, root, last_page = max(metas)
    if os.fstat(file).st_size < (last_page + 1) * page_size:
        raise UserError(f"{path} is truncated; copy it again, or delete it and make it again")
    return page_size, root


def _leaf_records(file: int, page_size: int, number: int) -> Iterator[tuple[str, int, int]]:
    """The records of the subtree below a page."""
    page = os.pread(file, page_size, number * page_size)
    own, _, flags, pointers_end, _ = PAGE.unpack_from(page)
    if own != number or not flags & (BRANCH | LEAF):
        raise ValueError(f"page {number} is not a page of the tree")
    pointers = struct.unpack_from(f"<{(pointers_end - PAGE.size) // 2}H", page, PAGE.size)
    nodes = [(at + NODE.size, *NODE.unpack_from(page, at)) for at in pointers]
    if flags & BRANCH:
        children = [low | high << 16 | highest << 32 for _, low, high, highest, _ in nodes]
        for child in children:  # the disk reads all of them ahead while the first is processed
            os.posix_fadvise(file, child * page_size, page_size, os.POSIX_FADV_WILLNEED)
        for child in children:
            yield from _leaf_records(file, page_size, child)
        return
    for at, low, high, node_flags, key_length in nodes:
        key = page[at : at + key_length].decode()
        value = number * page_size + at + key_length
        if node_flags & ELSEWHERE:
            (first,) = struct.unpack_from("<Q", page, at + key_length)
            value = first * page_size + PAGE.size
        elif node_flags:
            raise ValueError(f"'{key}' is not a plain record")
        yield key, value, low | high << 16
