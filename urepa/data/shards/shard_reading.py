"""Reads the shards of `layout` sample by sample. Members are read from their tar at their offset; nothing is unpacked,
and arrays are read without pickle."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.data.shards.layout import BUCKET, FLOATS, GLOBAL, INTEGERS, JSON, MASK, MEMBERS, SPLITS, TEXT, ShardSizes
from urepa.data.sources.caption_text import clean, decode, find_column
from urepa.data.sources.tar_shards import LONGEST, Place, checked_path, content_of, members_of
from urepa.data.stores.lmdb_pages import HIDDEN
from urepa.data.stores.record_keys import FLIP

NPY_FAULTS = (ValueError, EOFError, OSError, SyntaxError)  # what numpy raises for damaged files and for pickles
FP16_MAX = 65504.0


@dataclass(frozen=True)
class ShardSample:
    """A complete sample: the places of its members, and what its JSON says."""

    sample_id: str
    split: str
    bucket: str
    shard: Path
    key: str
    places: dict[str, Place]
    caption: str
    class_id: int
    path: str  # of the image that it was made from, or its place in the shards

    def where(self, member: str) -> str:
        """The member's name, for messages."""
        return printable(f"{self.shard}[{self.key}.{member}]")

    def array(self, member: str) -> np.ndarray:
        """A member's array, as it is. Raises UserError if it cannot be read."""
        return read_array(content_of(self.shard, self.places[member]), self.where(member))

    def checked(self, member: str, sizes: ShardSizes) -> np.ndarray:
        """A member's array. Raises UserError for another shape or data type, and for values that are not finite in
        fp16; of the mask for values other than 0 and 1, and if it is not as long as the tokens."""
        values, where, wanted = self.array(member), self.where(member), sizes.shape(member, self.bucket)
        if values.shape != wanted:
            raise UserError(
                f"{where} has the shape {_words(values.shape)}, not {_words(wanted)}{self._why(member, sizes)}"
            )
        kinds = INTEGERS if member == MASK else FLOATS
        if values.dtype.name not in kinds:
            raise UserError(f"{where} is of type {values.dtype.name}; give one of {', '.join(kinds)}")
        if member == MASK:
            if not np.isin(values, (0, 1)).all():
                raise UserError(f"{where} has other values than 0 and 1; write 1 for each token that counts, else 0")
        elif not (np.abs(values) <= FP16_MAX).all():  # also false for NaN
            raise UserError(f"{where} has values that are not finite in fp16; make that sample again")
        return values

    def _why(self, member: str, sizes: ShardSizes) -> str:
        if member in (MASK, TEXT):
            return f": data.text_encoder.length={sizes.text_length}, width {sizes.text_width}"
        rows, columns = sizes.grids[self.bucket]
        grid = f"{rows}x{columns} patches of {sizes.patch} pixels"
        asked = "" if member == GLOBAL else "; stage=diagnose of urepa.preprocess says what such patches may be"
        return f": {self.bucket} has {grid}, of width {sizes.width}{asked}" if member != "vae.npy" else ""


@dataclass
class Incomplete:
    """Samples that lack members, counted by split and missing member."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: int = 0
    first: str = ""

    def add(self, split: str, missing: list[str], where: str) -> None:
        self.samples += 1
        self.first = self.first or where
        self.counts.update((split, member) for member in missing)

    def __str__(self) -> str:
        """One line; empty if every sample is complete."""
        parts = [f"{split} {n} without {member}" for (split, member), n in sorted(self.counts.items())]
        return f"{self.samples} incomplete samples ({', '.join(parts)}; first: {self.first})" if parts else ""


def read_array(content: bytes, where: str) -> np.ndarray:
    """The array in an .npy file. Raises UserError if it is damaged or holds Python objects."""
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except NPY_FAULTS as error:
        raise UserError(
            f"{where} is not an .npy file of numbers ({printable(str(error))[:80]}); write it again"
        ) from error
    if not isinstance(values, np.ndarray):  # numpy opens archives too
        raise UserError(f"{where} is an archive, not an .npy file of one array; write it again")
    return values


def array_shape(sample: ShardSample, member: str) -> tuple[int, ...]:
    """The shape in the header of a member's .npy file. Raises UserError if it is damaged."""
    place = sample.places[member]
    head = io.BytesIO(content_of(sample.shard, Place(place.offset, min(place.size, 1024))))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape: tuple[int, ...] = read(head)[0]
        return shape
    except NPY_FAULTS as error:
        raise UserError(f"{sample.where(member)} is not an .npy file ({printable(str(error))[:80]})") from error


# --- listing ------------------------------------------------------------------------------------------------


def list_samples(folder: Path, sizes: ShardSizes, column: str | None) -> tuple[list[ShardSample], Incomplete]:
    """The complete samples, in the order of splits, buckets, shards and members, and the count of the others.

    Args:
        column: data.caption_column, the key of the caption in a sample's JSON; None: the one with a usual name.

    Raises UserError for a bucket that the track does not have, a damaged shard, a sample id that occurs twice, and a
    JSON without a caption.
    """
    found: dict[str, ShardSample] = {}
    incomplete = Incomplete()
    shards = list(shards_of(folder, sizes))
    for split, bucket, shard in progress.bar(shards, desc="shards", unit="shard"):
        for key, places in _members_by_key(shard).items():
            if missing := [member for member in MEMBERS if member not in places]:
                incomplete.add(split or "train", missing, printable(f"{shard}[{key}]"))
                continue
            sample = _described(ShardSample("", split, bucket, shard, key, places, "", 0, ""), sizes, column)
            if sample.sample_id in found:
                other = found[sample.sample_id]
                raise UserError(
                    f"{sample.where(JSON)} and {other.where(JSON)} have the same id "
                    f"{printable(sample.sample_id)!r}; keep one"
                )
            found[sample.sample_id] = sample
    return list(found.values()), incomplete


def shards_of(folder: Path, sizes: ShardSizes) -> Iterator[tuple[str, str, Path]]:
    """Split, bucket and path of each shard; the split is empty in a folder without splits. Raises UserError if there
    are none."""
    if not folder.is_dir():
        raise UserError(f"webdataset={folder} is not a folder here; give the one with bucket_WxH/*.tar")
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    there = False
    for split in splits or [""]:
        for place in sorted(p for p in (folder / split).iterdir() if p.is_dir() and BUCKET.fullmatch(p.name)):
            bucket = sizes.bucket_of(place)
            for shard in sorted(place.glob("*.tar")):
                there = True
                yield split, bucket, shard
    if not there:
        raise UserError(
            f"webdataset={folder} has no bucket_WxH/*.tar, as bucket_1024x1024/shard-000000.tar, also not in its "
            "train/ and val/; give the folder that has"
        )


def _members_by_key(shard: Path) -> dict[str, dict[str, Place]]:
    """The places of the members of each sample by their suffix. Other members are left out."""
    samples: dict[str, dict[str, Place]] = {}
    for member in members_of(shard):
        path = checked_path(shard, member.name)
        stem, _, suffix = path.name.partition(".")
        if suffix not in MEMBERS or not stem or not member.isreg() or member.sparse is not None:
            continue
        places = samples.setdefault(str(path.parent / stem), {})
        if suffix in places:
            raise UserError(f"{shard} has {printable(member.name)} twice; keep one")
        places[suffix] = Place(member.offset_data, member.size)
    return samples


def _described(bare: ShardSample, sizes: ShardSizes, column: str | None) -> ShardSample:
    """The sample with what its JSON says: `id` (else its key), `split` where the folder does not say, `class_id` (else
    0) and its one caption."""
    where = bare.where(JSON)
    try:
        known: Any = json.loads(decode(content_of(bare.shard, bare.places[JSON]), where))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({printable(str(error))[:80]}); write it again") from error
    if not isinstance(known, dict):
        raise UserError(f"{where} is a JSON {type(known).__name__}, not an object; give one with a key `caption`")
    sample_id = _checked_id(str(known.get("id", bare.key.replace("/", "_"))), where)
    split = bare.split or ("val" if known.get("split") in ("val", "validation", "test") else "train")
    rows, columns = sizes.buckets[bare.bucket]
    bucket = known.get("aspect_bucket", f"{columns}x{rows}")
    if bucket != f"{columns}x{rows}":
        raise UserError(f"{where} says aspect_bucket {printable(str(bucket))!r}, and lies in {bare.shard.parent.name}")
    class_id = known.get("class_id", 0)
    if type(class_id) is not int or class_id < 0:
        raise UserError(f"{where} has the class_id {printable(repr(class_id))[:40]}; give a whole number from 0")
    caption = known[find_column(list(known), column, where)]
    texts = caption if isinstance(caption, list) else [caption]
    if len(texts) != 1 or not isinstance(texts[0], str) or not clean(texts[0], where):
        raise UserError(f"{where} must have one caption, a text that is not empty, as it has one {TEXT}")
    path = str(known.get("path", f"{bare.shard.name}[{bare.key}]"))
    text = clean(texts[0], where)
    return ShardSample(sample_id, split, bare.bucket, bare.shard, bare.key, bare.places, text, class_id, path)


def _checked_id(sample_id: str, where: str) -> str:
    fits = 0 < len(sample_id.encode(errors="surrogateescape")) <= LONGEST and printable(sample_id) == sample_id
    if not fits or sample_id.startswith(HIDDEN) or sample_id.endswith(FLIP):
        raise UserError(
            f"{where}: its id {printable(sample_id)[:60]!r} does not fit; give 1 to {LONGEST} printable bytes"
        )
    return sample_id


def _words(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
