"""The identity of a source's images: a track's lists name images of one source, and another source is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.hub_names import resolve
from urepa.data.sources.image_folder import FORMER, count_left_out, readable
from urepa.data.sources.image_sources import SOURCES, folder
from urepa.data.sources.source_image import SourceImage
from urepa.data.sources.split_files import others_in_words
from urepa.data.sources.tar_shards import LeftOut, webdataset

ENDINGS = {"parquet": ".parquet", "webdataset": ".tar"}  # suffixes of sources identified by their files' names


class Listing:
    """The images of a source, in its order; after iteration `facts` identifies them. `known` are the facts stored when
    the source's lists were made, {} without lists: with them, a folder's suffixes stay the same if a later Pillow reads
    more formats."""

    def __init__(self, source: str, images: str, known: dict[str, Any]) -> None:
        self.source, self.images = source, images
        self.suffixes = frozenset(known.get("suffixes", FORMER)) if known else readable()  # of a folder's images
        self._digest, self._count, self._left_out = hashlib.sha256(), 0, LeftOut()

    def __iter__(self) -> Iterator[SourceImage]:
        for row in self._rows():
            self._digest.update(f"{row.name}\0{row.class_id}\0{row.path}\n".encode(errors="surrogateescape"))
            self._count += 1
            yield row

    def _rows(self) -> Iterator[SourceImage]:
        if self.source == "folder":
            return folder(self.images, self.suffixes)
        if self.source == "webdataset":
            self._left_out = LeftOut()
            return webdataset(self.images, self._left_out)
        return SOURCES[self.source](self.images)

    def print_left_out(self, unused: int, asked: str, beside: frozenset[str] = frozenset()) -> None:
        """Prints one line on what is left out, by reason, if anything is. `unused` counts held-out images beyond the
        number that `asked` (KEY=N) requests. Files with the suffixes `beside` are read for captions."""
        others = str(count_left_out(Path(self.images), self.suffixes, beside)) if self.source == "folder" else ""
        files = others_in_words(Path(self.images), ENDINGS[self.source]) if self.source in ENDINGS else ""
        more = f"{unused} held-out image{'s' * (unused != 1)} ({asked} are taken)" if unused else ""
        if there := [*filter(None, (others, str(self._left_out), files, more))]:
            print(f"left out: {', '.join(there)}")

    def facts(self) -> dict[str, Any]:
        """A digest of ids, classes and paths relative to the source, so that a folder may be moved. Rows of the hub and
        of parquet files are only numbered, so the facts add the data set's name, or the names and sizes of the parquet
        files; likewise for tar shards."""
        facts = {"source": self.source, "count": self._count, "listing_sha256": self._digest.hexdigest()}
        if self.source == "folder":
            facts["suffixes"] = sorted(self.suffixes)
        elif self.source == "hub":
            facts["name"] = resolve(self.images)[0]
        elif self.source in ENDINGS:
            files = sorted(Path(self.images).glob(f"*{ENDINGS[self.source]}"))
            named = "".join(f"{file.name}\0{file.stat().st_size}\n" for file in files)
            facts["files_sha256"] = hashlib.sha256(named.encode()).hexdigest()
        return facts

    def refuse_other(self, known: dict[str, Any], folder: Path) -> None:
        """Raises UserError if the images are known to differ from those that the lists in `folder` were chosen from."""
        differing = [
            f"{key}: {str(known[key])[:16]} there, {str(value)[:16]} here"
            for key, value in self.facts().items()
            if known.get(key, value) != value
        ]
        if differing:
            raise UserError(
                f"data.source={self.source} data.images={self.images} is not what the lists in {folder} were chosen "
                f"from ({', '.join(differing)}); give that, or another data.root"
            )
