"""One image of a source, not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from urepa.data.sources.decoding import dimensions


@dataclass(frozen=True, slots=True)
class SourceImage:
    """`load()` returns uint8 [H,W,3] or [H,W]; `split` is "train", "test" or "all"; `path` says where it lies.

    `open()` is the encoded image as a file; None: its pixels are not encoded. `captions(column)` is what the source has
    as its captions, in the column or under the key that is named (None: found by its name): a text, a list of texts, or
    None where it has none; None: its captions, if any, lie in other files.
    """

    name: str
    class_id: int
    split: str
    load: Callable[[], np.ndarray]
    path: str
    open: Callable[[], BinaryIO] | None = None
    captions: Callable[[str | None], object] | None = None

    def dimensions(self) -> tuple[int, int]:
        """Rows and columns as `load` gives them, of one that is encoded; its pixels are not decoded."""
        assert self.open is not None, "the settings' `check` has looked"
        with self.open() as file:
            return dimensions(file)
