"""What data are, wherever they lie and in whatever order they are listed: digests of samples with their records.

Shapes: R samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from urepa.data.samples import Sample


def row_digests(samples: Sequence[Sample]) -> np.ndarray:
    """Of each sample's id, class and split: blake2b of 16 bytes, as uint64 [R,2]."""
    digests = (
        hashlib.blake2b(f"{s.sample_id}\0{s.class_id}\0{s.split}".encode(), digest_size=16).digest() for s in samples
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def identity(columns: Iterable[np.ndarray]) -> str:
    """blake2b of 16 bytes, in hexadecimal, of rows that are sorted by their first two columns. `columns` are uint64
    [R,n] each, and stand beside each other in a row; the first are what `row_digests` gives."""
    rows = np.concatenate(list(columns), axis=1)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    return hashlib.blake2b(rows[order].tobytes(), digest_size=16).hexdigest()
