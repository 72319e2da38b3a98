"""Images and captions in tar shards, as the package `webdataset` writes them. Nothing is unpacked: a member is read
where it lies.

Layout: DIR/*.tar (or DIR/train*.tar, with or without test*.tar or val*.tar). A sample is the members of one key, which
is a member's path up to the first dot of its name: KEY.jpg (jpeg, png, webp), KEY.txt (a caption a line) or KEY.json (a
caption or a list of them under a key), KEY.cls (the number of its class). Other members are left out.
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
BLOCK = 512  # bytes of a tar's header; one of zeros ends it
CHUNK = 2**20
LONGEST = 400  # bytes of a sample id: LMDB's keys have at most 511, with what may stand behind


class Place(NamedTuple):
    """Where a member's content lies in its shard."""

    offset: int
    size: int


@dataclass
class _Sample:
    """The members of one key, by what they are."""

    image: Place | None = None
    others: dict[str, Place] = field(default_factory=dict)  # by suffix: txt, json, cls


class LeftOut:
    """What lies in the shards and is not read; in words by `str`, empty where there is nothing."""

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
    """The tar files by split. Raises UserError if there are none to train on."""
    files = files_by_split(Path(images), ".tar")[0]
    if "train" not in files:
        packed = next((f.name for f in sorted(Path(images).glob("*.tar.*"))), None)
        said = f"has {printable(packed)}; unpack it to a .tar" if packed else "has no *.tar to train on (train*.tar)"
        raise UserError(f"data.images={images} {said}; give data.images=FOLDER beside data.source=webdataset")
    return files


def webdataset(images: str, left_out: LeftOut | None = None) -> Iterator[SourceImage]:
    """The samples that have an image, in the order of the shards and of the members in them; named SHARD_KEY. What is
    not read is counted in `left_out`. Raises UserError for a shard that ends early, an equal key twice in one, a name
    that leads out of its folder, and labels of some samples alone."""
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
        raise UserError(f"{printable(place)}: its key is longer than the {LONGEST} bytes that are taken; shorten it")
    assert sample.image is not None, "the caller has looked"
    label = sample.others.get(LABEL)
    return SourceImage(
        sample_id,
        0 if label is None else _class_of(_content(shard, label), place),
        split,
        partial(_load, shard, sample.image),
        place,
        open=partial(_open, shard, sample.image),
        captions=partial(_captions, shard, sample.others, place),
    )


def _content(shard: Path, place: Place) -> bytes:
    """Raises OSError if the shard is shorter than it was."""
    with open(shard, "rb") as file:
        file.seek(place.offset)
        content = file.read(place.size)
    if len(content) < place.size:
        raise OSError(f"{shard} ends early")
    return content


def _open(shard: Path, place: Place) -> BinaryIO:
    return io.BytesIO(_content(shard, place))


def _load(shard: Path, place: Place) -> np.ndarray:
    return read(_open(shard, place))


def _class_of(content: bytes, place: str) -> int:
    try:
        return int(content)
    except ValueError as error:
        raise UserError(f"{printable(place)}: its .cls is {content[:20]!r}, not the number of a class") from error


def _captions(shard: Path, others: dict[str, Place], where: str, column: str | None) -> object:
    """Of KEY.txt, or of KEY.json where there is no such file or a key in it is asked for. None: it has neither."""
    place = printable(where)
    if TEXT in others and column is None:
        return lines(decode(_content(shard, others[TEXT]), f"{place} .txt"), f"{place} .txt")
    if JSON not in others:
        return None
    try:
        known = json.loads(decode(_content(shard, others[JSON]), f"{place} .json"))
    except ValueError as error:
        raise UserError(f"{place}: its .json is no JSON ({error}); correct it") from error
    if not isinstance(known, dict):
        raise UserError(f"{place}: its .json is {type(known).__name__}, not a mapping; give one with a key `caption`")
    return known[find_column(list(known), column, f"{place} .json")]


# --- members ------------------------------------------------------------------------------------------------


def _samples(shard: Path, left_out: LeftOut) -> dict[str, _Sample]:
    """A shard's samples by key, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    for member in _members(shard):
        if member.isdir():
            continue
        path = _checked_path(shard, member.name)
        stem, _, suffix = path.name.partition(".")
        suffix = suffix.lower()
        if not stem or stem.startswith("__"):  # hidden, or about the shard
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
    """Has the first sample of a shard a class?"""
    first = None
    for member in _members(shard):
        stem, _, suffix = _checked_path(shard, member.name).name.partition(".")
        if first is not None and stem != first:
            return False
        if suffix.lower() in (*IMAGES, TEXT, JSON, LABEL):
            first = stem
            if suffix.lower() == LABEL:
                return True
    return False


def _checked_path(shard: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UserError(f"{shard} has a member {printable(name)}, which is no path within a folder; pack it again")
    return path


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """A shard's members; their contents are passed over. Raises UserError for one that is no whole tar file."""
    try:
        with tarfile.open(shard, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                yield member
            end = archive.offset
        fault = _fault_behind(shard, end)
    except (tarfile.TarError, OSError) as error:
        fault = str(error)
    if fault is not None:
        raise UserError(f"{shard} is no whole tar file ({fault}); copy it again")


def _fault_behind(shard: Path, end: int) -> str | None:
    """What is wrong behind the last member, where zeros alone should be: `tarfile` takes any end for the end."""
    with open(shard, "rb") as file:
        file.seek(end)
        first = file.read(BLOCK)
        if len(first) < BLOCK:
            return "it ends early"
        rest = iter(partial(file.read, CHUNK), b"")
        if first.strip(b"\0") or any(block.strip(b"\0") for block in rest):
            return "behind its last whole member it has more than zeros"
    return None
