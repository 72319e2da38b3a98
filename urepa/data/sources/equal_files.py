"""Finds images of a source whose files are byte for byte equal, without decoding them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from urepa.core import progress
from urepa.data.sources.decoding import UNREADABLE
from urepa.data.sources.source_changes import FEW, LOOKED_AT, READERS
from urepa.data.sources.source_image import SourceImage


def equal_files(rows: Sequence[SourceImage]) -> list[list[str]]:
    """Groups of names of images whose files are byte for byte equal. With more than `LOOKED_AT` images none are read,
    as in `source_changes`. A file that cannot be read equals no other."""
    if len(rows) > LOOKED_AT:
        return []
    groups: dict[bytes, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(_digest, rows)
        bar = progress.bar(
            found, total=len(rows), desc="equal images", unit="image", leave=False, disable=len(rows) < FEW
        )
        for row, digest in zip(rows, bar, strict=True):
            if digest is not None:
                groups[digest].append(row.name)
    return [names for names in groups.values() if len(names) > 1]


def _digest(row: SourceImage) -> bytes | None:
    """The digest of the encoded image, or of its pixels where a source has no encoded image."""
    try:
        if row.open is None:
            pixels = row.load()
            content = repr(pixels.shape).encode() + pixels.tobytes()
        else:
            with row.open() as file:
                content = file.read()
    except UNREADABLE:
        return None
    return hashlib.blake2b(content, digest_size=16).digest()
