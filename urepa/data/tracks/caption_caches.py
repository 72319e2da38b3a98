"""The captions of a track and their records: FOLDER/captions.jsonl, and the store FOLDER/text_ENCODER with one record
for each distinct caption and one for the empty caption.

Shapes: B captions, K rows of integers, L positions, V values of a record.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hashing import file_sha256
from urepa.core.text_protocols import stacked_layers
from urepa.data.cache import open_store, refuse_differing
from urepa.data.lists.captions import (
    EMPTY,
    PROMPT,
    Captions,
    as_rows,
    distinct,
    read_written,
    write_captions,
)
from urepa.data.lists.classes import class_names, names_at
from urepa.data.lists.paths import is_finished
from urepa.data.lists.samples import Keys, Sample, Samples, digest_of
from urepa.data.online_encoders import OnlineText
from urepa.data.sources.caption_files import SUFFIXES, read_captions
from urepa.data.sources.caption_text import captions_of
from urepa.data.sources.image_folder import check_classes, readable
from urepa.data.sources.image_sources import SOURCES
from urepa.data.sources.source_changes import LOOKED_AT
from urepa.data.sources.source_image import SourceImage
from urepa.data.stages.encode import Output, Todo, device_and_dtype, encode_part, seal
from urepa.data.stages.verify import Fault, check_records, count_check, state_of
from urepa.data.stores.lmdb_store import Part
from urepa.data.stores.record_format import record_bytes
from urepa.data.stores.record_reading import Store
from urepa.data.text_conditions import TextConditions, encode_inputs

if TYPE_CHECKING:
    from urepa.data.tracks.latent_track import LatentTrack
    from urepa.data.tracks.pixel_track import PixelTrack

CHUNK = 64  # captions that are encoded together: one transaction
MOST_VALUES = 2**28  # values in the records of these captions: 1 GiB in float32
WHOLE = Part()


class CaptionCaches:
    """Makes and opens a track's captions and their records."""

    def __init__(self, settings: PixelTrack | LatentTrack, remake: str) -> None:
        """`remake` is the command that makes the track's caches."""
        assert settings.captions is not None, "checked by the settings' `check`"
        self.settings, self.encoder = settings, settings.text_encoder
        self.mode = str(settings.captions)
        self.file, self.folder, self.is_online = settings.captions_file, settings.text_folder, settings.online_text
        self.conditions = TextConditions.withheld_with(settings.cfg_dropout, self.encoder)
        self.remake = remake

    # --- captions ---------------------------------------------------------------------------------------

    def read_missing(self, rows: Sequence[SourceImage] | None = None) -> Captions | None:
        """The captions of all images, read from the source; None if they are already stored. Raises UserError if an
        image has none.

        Args:
            rows: the images; None: they are listed from the source.
        """
        return None if self.file.is_file() else self._read(rows)

    def _read(self, rows: Sequence[SourceImage] | None) -> Captions:
        source, root = str(self.settings.source), Path(self.settings.images)
        if rows is None:
            if source != "hub" and not root.is_dir():
                raise UserError(
                    f"there is no {self.file}, and data.images={root} is not a folder here to read captions from; put "
                    "one of the two back"
                )
            rows = list(SOURCES[source](self.settings.images))
        if self.mode == "files":
            return read_captions(root, rows) if source == "folder" else captions_of(rows, self.settings.caption_column)
        if source == "folder":
            check_classes(root, readable())
        names = self._class_names()
        return {row.name: [PROMPT.format(names[row.class_id])] for row in rows}

    def _class_names(self) -> list[str]:
        own = self.settings.class_names
        return names_at("folder", self.settings.images, readable()) if own is None else class_names(own)

    def write(self, read: Captions | None, samples: Samples) -> None:
        """Stores the captions of the track's samples; does nothing if `read_missing` returned None."""
        if read is not None:
            write_captions(self.file, {sample_id: read[sample_id] for sample_id in samples.ids()})

    def written(self, samples: Sequence[Sample] | Samples) -> dict[str, tuple[str, ...]]:
        """The stored captions, by sample id. Raises UserError if some of the samples have none."""
        captions = read_written(self.file)
        lacking = [s.sample_id for s in samples if not captions.get(s.sample_id)]
        if lacking:
            raise UserError(
                f"{self.file} has no captions of {len(lacking)} samples (first: '{lacking[0]}'); put it back, or "
                f"delete it on a machine that has the images and {self.remake}"
            )
        return captions

    @property
    def suffixes(self) -> frozenset[str]:
        """The suffixes of files that are read in addition to the images."""
        return SUFFIXES if self.mode == "files" and self.settings.source == "folder" else frozenset()

    def changes(self) -> str | None:
        """How the captions beside a folder's images differ from the stored ones, as text; None if they do not. Also
        None if it cannot be told, as with more files than are compared for images. Captions inside the image files are
        covered by the comparison of those files."""
        if self.mode != "files" or self.settings.source != "folder":
            return None
        if not self.file.is_file() or not Path(self.settings.images).is_dir():
            return None
        written = read_written(self.file)
        if len(written) > LOOKED_AT:
            return None
        try:
            now = self._read(None)
        except UserError as error:
            return str(error)
        other = [sample_id for sample_id, texts in written.items() if tuple(now.get(sample_id, ())) != texts]
        return f"other captions of {len(other)} images (first: '{other[0]}')" if other else None

    def remove(self) -> None:
        """Removes the captions and records of other images."""
        self.file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- records ----------------------------------------------------------------------------------------

    def _expected(self) -> dict[str, Any]:
        """The expected entries of the store's manifest, except the weights."""
        shape, known = self.conditions.shape, self.encoder.build().manifest()
        facts = {"kind": "text", "track": self.settings.name, "captions": self.mode, "encoder": known}
        sizes: dict[str, Any] = {"length": shape.length, "width": shape.width, "pooled_width": shape.pooled_width}
        if shape.layers:
            sizes |= {"layers": stacked_layers(self.encoder), "layers_width": shape.layers_width}
        return facts | sizes | {"captions_sha256": file_sha256(self.file)}

    def expected_records(self, samples: Mapping[str, int]) -> tuple[int, int] | None:
        """The number of records, before or after they are made, and the bytes of one; None if captions are encoded
        during training. Before the captions are stored, the count is one per sample (`samples`: their number by split)
        and one for the empty caption."""
        if self.is_online:
            return None
        if self.file.is_file():
            count = sum(1 for _ in distinct(read_written(self.file).values()))
        else:
            count = 1 + sum(samples.values())
        return count, record_bytes((self.conditions.shape.values,), "float16")

    @property
    def chunk(self) -> int:
        """How many captions are encoded together."""
        return max(1, min(CHUNK, MOST_VALUES // self.conditions.shape.values))

    def build(self, samples: Samples, part: Part = WHOLE) -> None:
        """Writes the missing records of this part of the captions, unless they are encoded during training. Prints how
        many captions the tokenizer truncates."""
        if self.is_online:
            return
        texts = as_rows(distinct(self.written(samples).values()))
        if is_finished(self.folder):
            refuse_differing(self.folder, read_json(self.folder / "manifest.json"), self._expected(), self.remake)
            return
        network, shape = self.encoder.build(), self.conditions.shape
        facts = self._expected() | {"shape": [shape.values], "dtype": "float16"}
        facts["encoder"] |= {"weights_sha256": network.weights_sha256()}
        facts |= {"parts": part.count} if part.count > 1 else {}
        output, own = Output(self.folder, facts, unit="caption"), texts.filter(map(part.holds, texts.ids()))
        device, _ = device_and_dtype()

        def read(todo: Todo) -> Iterator[tuple[Sequence[Sample], Tensor]]:
            for start in range(0, len(own), self.chunk):
                if chosen := todo(own[start : start + self.chunk]):
                    yield chosen, network.tokenize([s.path for s in chosen]).inputs_BKL

        def encode(inputs_BKL: Tensor) -> np.ndarray:
            records_BV: np.ndarray = encode_inputs(network, shape, inputs_BKL.to(device)).cpu().numpy()
            return records_BV

        encode_part(output, part, own, read, encode, self.remake, digest_of(texts))
        seal(output, digest_of(texts))
        self._print_cut(network, own)

    def _print_cut(self, network: Any, texts: Samples) -> None:
        cut = [n for start in range(0, len(texts), CHUNK) for n in network.tokenize(_texts(texts, start)).cut]
        if any(cut):
            key = getattr(self.encoder, "cut_by", "length")
            length, count = getattr(self.encoder, key), sum(s.path != EMPTY for s in texts)
            print(
                f"{sum(map(bool, cut))} of {count} captions are longer than data.text_encoder.{key}="
                f"{length} tokens and are cut; the longest has {max(cut) + length}"
            )

    def open(self, samples: Samples, copy: Path | None = None) -> TextConditions:
        """The conditions of the track's samples. Records are read from a `copy` of the store, if there is one, or
        computed during training."""
        captions, folder = self.written(samples), self.folder if copy is None else copy
        if self.is_online:
            return self.conditions.asked(self._expected(), captions)
        keys = Keys([as_rows(distinct(captions.values()))])
        return self.conditions.opened(open_store(folder, self._expected(), keys, self.remake), captions)

    def verify(self, store: Store | OnlineText | None) -> None:
        """Checks the encoder and every record of the open store, if there is one. Raises a Fault at the first fault."""
        if isinstance(store, OnlineText):
            return
        assert store is not None, "the open track has a store of captions"
        keys = Keys([as_rows(distinct(read_written(self.file).values()))])
        count_check(store)
        check_records(store, keys, unit_length=False)
        known, here = store.manifest["encoder"]["weights_sha256"], self.encoder.build().weights_sha256()
        if known != here:
            raise Fault(
                store.folder,
                f"{store.folder} was made with other weights of {store.manifest['encoder']['model']} than the text "
                "encoder has here; give those, or make it again",
            )
        print(f"{store.folder}: the records of {len(keys) - 1} captions and the empty one {state_of([store])}")


def _texts(texts: Samples, start: int) -> list[str]:
    return [s.path for s in texts[start : start + CHUNK]]
