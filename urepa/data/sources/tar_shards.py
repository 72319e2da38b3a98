"""Images and captions in tar shards, as written by the package `webdataset`. Nothing is unpacked: members are read from
the shard at their offset.

Layout: DIR/*.tar (or DIR/train*.tar, with or without test*.tar or val*.tar). The members with one key are one sample;
the key is a member's path up to the first dot of its name. KEY.jpg (or jpeg, png, webp) is the image; KEY.txt (a
caption per line) or KEY.json (a caption or a list of them under a key) are captions; KEY.cls is the class number. Other
members are left out.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.data.sources.caption_text import decode, find_column, lines
from urepa.data.sources.decoding import read
from urepa.data.sources.source_image import SourceImage
from urepa.data.sources.split_files import files_by_split

IMAGES, TEXT, JSON, LABEL = ("jpg", "jpeg", "png", "webp"), "txt", "json", "cls"
BLOCK = 512  # bytes of a tar's header; a block of zeros ends the tar
CHUNK = 2**20
LONGEST = 400  # bytes of a sample id: LMDB's keys have at most 511, including suffixes


class Place(NamedTuple):
    """The offset and size of a member's content in its shard."""

    offset: int
    size: int


@dataclass
class _Sample:
    """The members with one key, by kind."""

    image: Place | None = None
    others: dict[str, Place] = field(default_factory=dict)  # by suffix: txt, json, cls


class LeftOut:
    """The contents of the shards that are not read. `str` describes them; it is empty without any."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.without_image = 0

    def __str__(self) -> str:
        named = ", ".join(f"{printable(suffix)} {n}" for suffix, n in self.suffixes.most_common(3))
        members, samples = self.suffixes.total(), self.without_image
        counted = (
            (members, f"member{'s' * (members != 1)} of tar files of kinds that are not read ({named})"),
            (samples, f"sample{'s' * (samples != 1)} without an image"),
        )
        return ", ".join(f"{n} {what}" for n, what in counted if n)


def shards_of(images: str) -> dict[str, list[Path]]:
    """The tar files by split. Raises UserError if there are none for training."""
    files = files_by_split(Path(images), ".tar")[0]
    if "train" not in files:
        packed = next((f.name for f in sorted(Path(images).glob("*.tar.*"))), None)
        said = f"has {printable(packed)}; unpack it to a .tar" if packed else "has no *.tar to train on (train*.tar)"
        raise UserError(f"data.images={images} {said}; give data.images=FOLDER beside data.source=webdataset")
    return files


def webdataset(images: str, left_out: LeftOut | None = None) -> Iterator[SourceImage]:
    """The samples with an image, named SHARD_KEY, in the order of the shards and of their members. What is not read is
    counted in `left_out`. Raises UserError for a truncated shard, for a key that a shard has twice, for a name that
    points outside its folder, and if only some samples have labels."""
    left_out = LeftOut() if left_out is None else left_out
    files = shards_of(images)
    held_out = next((split for split in ("test", "validation") if split in files), None)
    labelled: bool | None = None
    for name, split in (("train", "all" if held_out is None else "train"), (held_out, "test")):
        for shard in files.get(name, []) if name else []:
            for key, sample in _samples(shard, left_out).items():
                place = f"{shard.name}[{key}]"
                if sample.image is None:
                    left_out.without_image += 1
                    continue
                labelled = LABEL in sample.others if labelled is None else labelled
                if labelled != (LABEL in sample.others):
                    kind = "without" if labelled else "with"
                    raise UserError(f"{printable(place)} is the first sample {kind} a .cls; give all one, or none")
                yield _as_image(shard, key, sample, split, place)


def _as_image(shard: Path, key: str, sample: _Sample, split: str, place: str) -> SourceImage:
    sample_id = f"{shard.stem}_{key.replace('/', '_')}"
    if len(sample_id.encode(errors="surrogateescape")) > LONGEST:
        raise UserError(f"{printable(place)}: its key is longer than {LONGEST} bytes; shorten it")
    assert sample.image is not None, "checked by the caller"
    label = sample.others.get(LABEL)
    return SourceImage(
        sample_id,
        0 if label is None else _class_of(content_of(shard, label), place),
        split,
        partial(_load, shard, sample.image),
        place,
        open=partial(_open, shard, sample.image),
        captions=partial(_captions, shard, sample.others, place),
    )


def content_of(shard: Path, place: Place) -> bytes:
    """The member's bytes. Raises OSError if the shard is shorter than when it was listed."""
    with open(shard, "rb") as file:
        file.seek(place.offset)
        content = file.read(place.size)
    if len(content) < place.size:
        raise OSError(f"{shard} ends early")
    return content


def _open(shard: Path, place: Place) -> BinaryIO:
    return io.BytesIO(content_of(shard, place))


def _load(shard: Path, place: Place) -> np.ndarray:
    return read(_open(shard, place))


def _class_of(content: bytes, place: str) -> int:
    try:
        return int(content)
    except ValueError as error:
        raise UserError(f"{printable(place)}: its .cls is {content[:20]!r}, not the number of a class") from error


def _captions(shard: Path, others: dict[str, Place], where: str, column: str | None) -> object:
    """The captions in KEY.txt, or in KEY.json if there is no KEY.txt or if `column` names a key. None without
    either."""
    place = printable(where)
    if TEXT in others and column is None:
        return lines(decode(content_of(shard, others[TEXT]), f"{place} .txt"), f"{place} .txt")
    if JSON not in others:
        return None
    try:
        known = json.loads(decode(content_of(shard, others[JSON]), f"{place} .json"))
    except ValueError as error:
        raise UserError(f"{place}: its .json is not valid JSON ({error}); correct it") from error
    if not isinstance(known, dict):
        raise UserError(f"{place}: its .json is {type(known).__name__}, not a mapping; give one with a key `caption`")
    return known[find_column(list(known), column, f"{place} .json")]


# --- members ------------------------------------------------------------------------------------------------


def _samples(shard: Path, left_out: LeftOut) -> dict[str, _Sample]:
    """A shard's samples by key, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    for member in members_of(shard):
        if member.isdir():
            continue
        path = checked_path(shard, member.name)
        stem, _, suffix = path.name.partition(".")
        suffix = suffix.lower()
        if not stem or stem.startswith("__"):  # hidden, or metadata of the shard
            continue
        if suffix not in (*IMAGES, TEXT, JSON, LABEL) or not member.isreg() or member.sparse is not None:
            left_out.suffixes[f".{suffix}" if member.isreg() else "link"] += 1
            continue
        key = str(path.parent / stem)
        sample, place = samples.setdefault(key, _Sample()), Place(member.offset_data, member.size)
        if suffix in sample.others or (suffix in IMAGES and sample.image is not None):
            what = "image" if suffix in IMAGES else f".{suffix}"
            raise UserError(f"{shard} has the key {printable(key)} with more than one {what}; leave one there")
        if suffix in IMAGES:
            sample.image = place
        else:
            sample.others[suffix] = place
    return samples


def has_labels(shard: Path) -> bool:
    """Whether the first sample of a shard has a class."""
    first = None
    for member in members_of(shard):
        stem, _, suffix = checked_path(shard, member.name).name.partition(".")
        if first is not None and stem != first:
            return False
        if suffix.lower() in (*IMAGES, TEXT, JSON, LABEL):
            first = stem
            if suffix.lower() == LABEL:
                return True
    return False


def checked_path(shard: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UserError(f"{shard} has a member {printable(name)}, which is not a path inside the shard; pack it again")
    return path


def members_of(shard: Path) -> Iterator[tarfile.TarInfo]:
    """A shard's members, without reading their contents. Raises UserError if the shard is not a complete tar file."""
    try:
        with tarfile.open(shard, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them in memory
                yield member
            end = archive.offset
        fault = _fault_behind(shard, end)
    except (tarfile.TarError, OSError) as error:
        fault = str(error)
    if fault is not None:
        raise UserError(f"{shard} is not a complete tar file ({fault}); copy it again")


def _fault_behind(shard: Path, end: int) -> str | None:
    """The fault after the last member, or None. Only zeros may follow it, which `tarfile` does not check."""
    with open(shard, "rb") as file:
        file.seek(end)
        first = file.read(BLOCK)
        if len(first) < BLOCK:
            return "it ends early"
        rest = iter(partial(file.read, CHUNK), b"")
        if first.strip(b"\0") or any(block.strip(b"\0") for block in rest):
            return "it has other bytes than zeros after its last complete member"
    return None
