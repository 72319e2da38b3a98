"""Digests that identify samples and their records, independent of their folder and of the order of the lists.

Shapes: R samples.
"""

from __future__ import annotations

import hashlib

import numpy as np

from urepa.data.lists.samples import Samples


class Identity:
    """The identity of the samples of one or several lists."""

    def __init__(self, *lists: Samples) -> None:
        rows_R2 = np.concatenate([samples.row_digests() for samples in lists])
        self._order = np.lexsort((rows_R2[:, 1], rows_R2[:, 0]))
        self._rows_R2 = rows_R2[self._order]

    def of(self, facts_Rn: np.ndarray | None = None) -> str:
        """A digest of the samples with these facts about each (uint64 [R,n], in the order of the lists): 16-byte
        blake2b, in hexadecimal, of the sorted rows [id, class and split | facts]."""
        columns = [self._rows_R2] if facts_Rn is None else [self._rows_R2, facts_Rn[self._order]]
        return hashlib.blake2b(np.concatenate(columns, axis=1).tobytes(), digest_size=16).hexdigest()
