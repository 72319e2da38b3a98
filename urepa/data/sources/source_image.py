"""One image of a source, read on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from urepa.data.sources.decoding import dimensions


@dataclass(frozen=True, slots=True)
class SourceImage:
    """`load()` returns uint8 [H,W,3] or [H,W]; `split` is "train", "test" or "all"; `path` is the image's place in the
    source.

    `open()` returns the encoded image as a file; `open` is None if the pixels are not encoded. `captions(column)`
    returns the value of the named column or key (None: the one with a usual name): a text, a list of texts, or None.
    `captions` is None if the image's captions, if any, are in other files.
    """

    name: str
    class_id: int
    split: str
    load: Callable[[], np.ndarray]
    path: str
    open: Callable[[], BinaryIO] | None = None
    captions: Callable[[str | None], object] | None = None

    def dimensions(self) -> tuple[int, int]:
        """Rows and columns as `load` returns them, without decoding pixels; the image must be encoded."""
        assert self.open is not None, "checked by the settings' `check`"
        with self.open() as file:
            return dimensions(file)
