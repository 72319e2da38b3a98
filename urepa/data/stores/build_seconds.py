"""How long making a store took: FOLDER/seconds.json beside each part's records. It does not count towards the store's
identity: no manifest and no digest contains it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from urepa.core.files import read_json, write_whole
from urepa.data.stores.lmdb_pages import has_records
from urepa.data.stores.lmdb_store import Part
from urepa.data.stores.record_reading import Store

FILE = "seconds.json"
EVERY = 10.0  # seconds between two writes, so the most that a killed build loses


class BuildTime:
    """The seconds spent on a part of a store, over all builds. Not recorded for a part that an earlier version began,
    as its time is unknown. Create it before the first record is written."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._is_known = self._file.exists() or not has_records(folder)
        self._before = float(read_json(self._file)["seconds"]) if self._file.exists() else 0.0
        self._begin = time.monotonic()
        self._written = -EVERY  # so that the first batch is written at once

    def note(self, last: bool = False) -> None:
        """Call after each batch. Writes the sum if the last write was `EVERY` seconds ago, or if this batch is the
        `last`."""
        spent = time.monotonic() - self._begin
        if self._is_known and (last or spent - self._written >= EVERY):
            write_whole(self._file, json.dumps({"seconds": self._before + spent}))
            self._written = spent


def seconds_of(store: Store) -> float | None:
    """The seconds spent on a store and its mirrored store, over all parts; None if unknown."""
    parts = store.manifest.get("parts", 1)
    files = [Part(i, parts).folder(store.folder) / FILE for i in range(parts)]
    own = sum(float(read_json(file)["seconds"]) for file in files) if all(file.exists() for file in files) else None
    mirror = 0.0 if store.mirror is None else seconds_of(store.mirror)
    return None if own is None or mirror is None else own + mirror


def teacher_cache_seconds(cache: Any) -> float | None:
    """The seconds spent on all token stores of a track's caches; 0 without one, as for tokens that are computed during
    training; None if unknown."""
    stores = {
        one.folder: one for bucket in cache.buckets for one in bucket.tokens.values() if isinstance(one, Store)
    }  # teachers may share one
    found = [seconds_of(store) for store in stores.values()]
    return None if None in found else sum(seconds for seconds in found if seconds is not None)
