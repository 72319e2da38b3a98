"""The images stage: the cut images, as JPEG in ZIP files of a few hundred, each written whole or not at all.

Layout, in the track's folder or in a bucket's: images/part-<i>of<n>/<chunk>-<digest of its ids>.zip with SAMPLE_ID.jpg
inside, skipped.json for images that were left out because they could not be read, unreadable.json for those that the
last call could not read. Another list of samples (a larger track in the same folder) adds chunks of the images that no
other chunk has.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.core.random_draws import digest64
from urepa.data.lists.samples import Keys, Sample
from urepa.data.sources import unreadable
from urepa.data.sources.decoding import UNREADABLE
from urepa.data.stores.lmdb_pages import key_digests, last_rows, rows_of
from urepa.data.stores.lmdb_store import Part, batches_of, only_writer

CHUNK = 256  # images per ZIP file, the most that a killed build loses
QUALITY = 95
WORKERS = 4
LOCAL_HEADER = 30  # bytes before an entry's name in a ZIP file
# digest of the sample's id, index of the file, offset of the entry, bytes of its content and their crc32
PLACE = np.dtype([("id", "<u8"), ("file", "<i4"), ("start", "<i8"), ("length", "<i4"), ("crc32", "<u4")])


def part_folder(root: Path, part: Part) -> Path:
    """The folder of a part's ZIP files."""
    return root / "images" / f"part-{part.index}of{part.count}"


def chunks_of(root: Path, part: Part, samples: Sequence[Sample]) -> list[tuple[Path, Sequence[Sample]]]:
    """The part's ZIP files with the samples of each."""
    chunks = enumerate(samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
    named = [(f"{i:06d}-{digest64('chunk', *(s.sample_id for s in chunk)):016x}.zip", chunk) for i, chunk in chunks]
    return [(part_folder(root, part) / name, chunk) for name, chunk in named]


def _entries(file: Path) -> list[zipfile.ZipInfo]:
    """The entries of a ZIP file. Raises UserError if it is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except zipfile.BadZipFile as error:
        raise _damage_error(file, error) from error


def _damage_error(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged ({error}); delete it and run the stage `images` again")


def _id(entry: zipfile.ZipInfo) -> str:
    return entry.filename.removesuffix(".jpg")


def square_archives(folder: Path) -> dict[str, Path]:
    """The ZIP file of each sample's image, in a part's folder."""
    return {_id(entry): file for file in sorted(folder.glob("*.zip")) for entry in _entries(file)}


def _missing_squares(
    file: Path, chunk: Sequence[Sample], there: dict[str, Path], skipped: dict[str, str]
) -> list[Sample]:
    """The samples of a chunk without an image in any archive, except those that a finished chunk skipped: these are not
    tried again."""
    done = skipped if file.exists() else {}
    return [s for s in chunk if s.sample_id not in there and s.sample_id not in done]


def has_chunks(root: Path, part: Part, samples: Sequence[Sample]) -> bool:
    """Whether `write_images` has processed the whole list once."""
    return all(file.exists() for file, _ in chunks_of(root, part, samples))


def is_complete(root: Path, part: Part, samples: Sequence[Sample]) -> bool:
    """True if `write_images` has nothing left to do."""
    if not has_chunks(root, part, samples):
        return False
    chunks = chunks_of(root, part, samples)
    there, skipped = square_archives(part_folder(root, part)), dict.fromkeys(skipped_ids(root), "")
    return not any(_missing_squares(file, chunk, there, skipped) for file, chunk in chunks)


def write_images(
    root: Path,
    part: Part,
    samples: Sequence[Sample],
    load: dict[str, Callable[[], np.ndarray]],
    cut: Callable[[np.ndarray], Any],
    max_skipped: float,
) -> None:
    """Writes the part's missing chunks, without images that are in another list's chunks. `cut` turns an image into the
    PIL image that is stored. Images that cannot be read are left out and listed. Raises UserError, after all were
    tried, if they exceed the fraction `max_skipped` of `samples` (the next call then tries them again), and if another
    process is writing this part."""
    folder = part_folder(root, part)
    skipped_file = folder / "skipped.json"
    skipped: dict[str, str] = {}

    def jpeg(sample: Sample) -> tuple[str, bytes | str]:
        try:
            pixels = load[sample.sample_id]()
        except UNREADABLE as error:
            return sample.sample_id, f"{sample.path}: {error}"
        out = io.BytesIO()
        cut(pixels).save(out, format="JPEG", quality=QUALITY)
        return sample.sample_id, out.getvalue()

    with (
        only_writer(folder),
        ThreadPoolExecutor(WORKERS) as pool,
        progress.bar(total=len(samples), desc="images", unit="image") as bar,
    ):
        if skipped_file.exists():
            skipped |= read_json(skipped_file)
        there = square_archives(folder)
        own: dict[str, str] = {}  # of this list; images skipped in another list do not count
        for file, chunk in chunks_of(root, part, samples):
            left = _missing_squares(file, chunk, there, skipped)
            progress.skip_done(bar, len(chunk) - len(left))
            own |= {s.sample_id: skipped[s.sample_id] for s in chunk if s.sample_id in skipped and s not in left}
            if left or not file.exists():
                content = io.BytesIO(file.read_bytes() if file.exists() else b"")
                with zipfile.ZipFile(content, "a", zipfile.ZIP_STORED) as archive:
                    for sample_id, data in pool.map(jpeg, left):
                        if isinstance(data, str):
                            skipped[sample_id] = own[sample_id] = data
                        else:  # a fixed date, so that the same images give the same file
                            skipped.pop(sample_id, None)  # it may have been repaired since
                            archive.writestr(zipfile.ZipInfo(f"{sample_id}.jpg"), data)
                write_whole(skipped_file, json.dumps(skipped, indent=1))
                write_whole(file, content.getvalue())
                bar.update(len(left))
        try:
            unreadable.report(own, len(samples), max_skipped, folder)
        except UserError:
            write_whole(skipped_file, json.dumps({i: why for i, why in skipped.items() if i not in own}, indent=1))
            raise


def skipped_ids(root: Path) -> set[str]:
    """The ids of samples without an image, over all parts."""
    files = (root / "images").glob("part-*/skipped.json")
    return {sample_id for file in files for sample_id in read_json(file)}


def read_images(
    root: Path,
    part: Part,
    samples: Sequence[Sample],
    batch: int,
    todo: Callable[[Sequence[Sample]], list[Sample]],
) -> Iterator[tuple[list[Sample], Tensor]]:
    """The part's images in fixed batches: samples and uint8 [B,3,S,S]; threads decode one batch ahead. `todo` returns
    the samples of a batch that are needed; the others are not decoded."""
    chunks = chunks_of(root, part, samples)
    missing = [file for file, _ in chunks if not file.is_file()]
    if missing:
        raise UserError(f"there is no {missing[0]}; run the stage `images` with the same shard first")
    places = square_archives(part_folder(root, part))
    skipped = skipped_ids(root)
    neither = [s for s in samples if s.sample_id not in places and s.sample_id not in skipped]
    if neither:
        raise UserError(
            f"{part_folder(root, part)} lacks {len(neither)} of {len(samples)} images (first: {neither[0].path}); run "
            "the stage `images` with the same shard first"
        )
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead: list[tuple[list[Sample], list[Future[np.ndarray]]]] = []
        for _, chunk in chunks:
            named = [s for s in chunk if s.sample_id in places]
            with ExitStack() as stack:
                archives = {file: _open_zip(stack, file) for file in {places[s.sample_id] for s in named}}
                for own in batches_of(named, batch):
                    wanted = todo(own)
                    if not wanted:
                        continue
                    jpegs = [_content(archives[places[s.sample_id]], s) for s in wanted]
                    ahead.append((wanted, [pool.submit(_pixels, jpeg) for jpeg in jpegs]))
                    if len(ahead) > 1:
                        yield _collect(*ahead.pop(0))
        for item in ahead:
            yield _collect(*item)


def _open_zip(stack: ExitStack, file: Path) -> zipfile.ZipFile:
    return stack.enter_context(zipfile.ZipFile(file))


def _content(archive: zipfile.ZipFile, sample: Sample) -> bytes:
    try:
        return archive.read(f"{sample.sample_id}.jpg")
    except zipfile.BadZipFile as error:
        assert archive.filename is not None
        raise _damage_error(Path(archive.filename), error) from error


class ImageArchive:
    """The images of the images stage by sample id, for networks that run during training. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self._files = sorted((root / "images").glob("part-*/*.zip"))
        if not self._files:
            raise UserError(f"{root}/images is empty: networks that run during training need the stage `images`")
        places = np.concatenate([_places(number, _entries(path)) for number, path in enumerate(self._files)])
        self._places = places[last_rows(places["id"])]
        self._ids = np.ascontiguousarray(self._places["id"])

    def _rows(self, ids: list[str]) -> np.ndarray:
        return rows_of(key_digests(ids), self._ids)

    def missing(self, ids: Keys) -> list[str]:
        """The ids without an image."""
        return ids.where(rows_of(ids.digests(), self._ids) < 0)

    def crc32(self, ids: Keys) -> np.ndarray:
        """The crc32 of the samples' JPEGs, which must exist: uint64 [R,1]."""
        return self._places["crc32"][rows_of(ids.digests(), self._ids)].astype("<u8")[:, None]

    def require_whole(self, ids: Iterable[str]) -> None:
        """Raises UserError for the first JPEG that has changed since it was written."""
        with ThreadPoolExecutor(WORKERS) as pool:
            for chunk in batches_of(ids, CHUNK):
                list(pool.map(self._jpeg, chunk, self._rows(chunk)))

    def pixels(self, ids: list[str]) -> Tensor:
        """RGB uint8 [R,3,S,S]. Raises UserError for an image that cannot be read or has changed since it was
        written."""
        with ThreadPoolExecutor(WORKERS) as pool:
            pixels = list(pool.map(self._read, ids, self._rows(ids)))
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)

    def __call__(self, ids: list[str]) -> Tensor:
        """RGB [R,3,S,S] in [0,1]."""
        return self.pixels(ids).float() / 255

    def _jpeg(self, sample_id: str, row: int) -> bytes:
        """A sample's JPEG, read at its offset: reading the ZIP's directory would take longer than reading the image."""
        number, start, length, crc32 = self._places[["file", "start", "length", "crc32"]][row].tolist()
        path = self._files[number]
        try:
            with open(path, "rb") as file:
                file.seek(start)
                head = file.read(LOCAL_HEADER)
                file.seek(sum(struct.unpack("<HH", head[-4:])), os.SEEK_CUR)  # its name and extra field
                jpeg = file.read(length)
        except (OSError, struct.error) as error:
            raise _unreadable_error(path, sample_id, error) from error
        if zlib.crc32(jpeg) != crc32:
            raise _unreadable_error(path, sample_id, "it has changed since it was written")
        return jpeg

    def _read(self, sample_id: str, row: int) -> np.ndarray:
        jpeg = self._jpeg(sample_id, row)
        try:
            return _pixels(jpeg)
        except UNREADABLE as error:
            raise _unreadable_error(self._files[self._places["file"][row]], sample_id, error) from error


def _places(number: int, entries: list[zipfile.ZipInfo]) -> np.ndarray:
    """The places of the entries of the file with this number."""
    assert all(entry.compress_type == zipfile.ZIP_STORED for entry in entries), "JPEGs are stored uncompressed"
    places = np.empty(len(entries), PLACE)
    places["id"], places["file"] = key_digests(map(_id, entries)), number
    for field, name in (("start", "header_offset"), ("length", "file_size"), ("crc32", "CRC")):
        places[field] = [getattr(entry, name) for entry in entries]
    return places


def _unreadable_error(path: Path, sample_id: str, why: object) -> UserError:
    return UserError(
        f"{path}: the image of {sample_id} cannot be read ({why}); delete the file and run the stage `images` again"
    )


def _pixels(jpeg: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image)


def _collect(samples: list[Sample], decoding: list[Future[np.ndarray]]) -> tuple[list[Sample], Tensor]:
    stacked = np.stack([future.result() for future in decoding])
    return samples, torch.from_numpy(stacked).permute(0, 3, 1, 2)
