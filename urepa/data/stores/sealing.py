"""The digests of a whole store: the rows that were written with its records. Records without a row (of a store that an
earlier version wrote, or that was adopted) are read to compute their digest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.data.stores.digests import (
    COLUMNS,
    FILE,
    KEY,
    MEAN_TOKEN,
    Digests,
    as_file,
    digest_rows,
    manifest_entries,
    newest,
    sha256_of,
)
from urepa.data.stores.lmdb_pages import DIGESTS, Index, rows_of
from urepa.data.stores.record_reading import Store

CHUNK = 64  # records that are read together
THREADS = 2


def digests_file(store: Store) -> dict[str, bytes]:
    """The content of digests.npy for the store's records, by the file's name."""
    return {FILE: as_file(digests_of_records(store))}


def digests_of_records(store: Store) -> np.ndarray:
    """The rows [R,4] of the store's records, sorted by key. Records without a digest are read and get the digest of
    their present content, which a printed line reports."""
    there = np.sort(np.concatenate([index.digests_R for index, _ in store.indices()]))
    written = [np.frombuffer(rows, dtype="<u8").reshape(-1, COLUMNS) for rows in store.hidden_rows(DIGESTS)]
    rows_R4 = newest(np.concatenate([_existing_rows(store.folder), *written]))
    lacking = there[rows_of(there, rows_R4[:, KEY]) < 0]
    if len(lacking):
        print(f"{store.folder.name}: {len(lacking)} records have no digest; each gets one of its present content")
        rows_R4 = newest(np.concatenate([rows_R4, _read(store, lacking)]))
    found: np.ndarray = rows_R4[rows_of(rows_R4[:, KEY], there) >= 0]
    return found


def _existing_rows(folder: Path) -> np.ndarray:
    """The rows of digests.npy, if it is the one that the store's manifest names."""
    manifest = folder / "manifest.json"
    known = read_json(manifest).get("digests_sha256") if manifest.is_file() else None
    if known is None or known != sha256_of(folder / FILE):
        return np.empty((0, COLUMNS), dtype="<u8")
    return Digests(folder, known).rows_R4


def _read(store: Store, keys: np.ndarray) -> np.ndarray:
    """The rows of the records with these key digests, in the order of their offsets."""
    chunks = [chunk for index, file in store.indices() for chunk in _chunks(index, file, keys)]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        progress.bar(total=len(keys), desc=f"digest {store.folder.name}", unit="record") as bar,
    ):
        found = []
        for rows in pool.map(_rows_of_chunk, chunks):
            found.append(rows)
            bar.update(len(rows))
    return np.concatenate(found)


def _chunks(index: Index, file: int, keys: np.ndarray) -> Iterator[tuple[Index, int, np.ndarray]]:
    rows = np.flatnonzero(rows_of(index.digests_R, keys) >= 0)
    rows = rows[np.argsort(index.offsets_R[rows])]
    for start in range(0, len(rows), CHUNK):
        yield index, file, rows[start : start + CHUNK]


def _rows_of_chunk(chunk: tuple[Index, int, np.ndarray]) -> np.ndarray:
    index, file, rows = chunk
    places = zip(index.offsets_R[rows].tolist(), index.lengths_R[rows].tolist(), strict=True)
    return digest_rows(index.digests_R[rows], [os.pread(file, length, offset) for offset, length in places])


def add_digests(folder: Path) -> None:
    """Completes digests.npy of a finished store and writes the SHA-256 of the mean token beside it into the manifest.
    Raises UserError if digests.npy is missing or has changed and the records are not those that it was made from."""
    store = Store(folder)
    known, before = store.manifest.get("digests_sha256"), sha256_of(folder / FILE)
    files = digests_file(store)
    store.close()
    if (folder / MEAN_TOKEN).is_file() and "mean_token_sha256" not in store.manifest:
        files[MEAN_TOKEN] = (folder / MEAN_TOKEN).read_bytes()
    facts = manifest_entries(files)
    if known is not None and known not in (before, facts["digests_sha256"]):
        raise UserError(
            f"{folder / FILE} is missing or has changed, and the records are not those that it was made from; put it "
            f"back, or delete {folder} and make it again"
        )
    if before != facts["digests_sha256"]:
        write_whole(folder / FILE, files[FILE])
    if store.manifest | facts != store.manifest:
        write_whole(folder / "manifest.json", json.dumps(store.manifest | facts, indent=1))
    print(f"{folder.name}: every record has a digest")
