"""The images stage: squares as JPEG in ZIP files of a few hundred, each there whole or not at all.

Layout: images/part-<i>of<n>/<chunk>-<digest of its ids>.zip with SAMPLE_ID.jpg inside, skipped.json for what could
not be read. Another list of samples (a larger track in the same folder) makes other chunks beside them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from urepa import progress
from urepa.data.cache import Sample
from urepa.data.photos import square
from urepa.data.store import Part, batches_of
from urepa.draws import digest64
from urepa.errors import UserError
from urepa.files import write_whole

CHUNK = 256  # images a ZIP file: what a kill may cost at most
QUALITY = 95
WORKERS = 4


def part_folder(root: Path, part: Part) -> Path:
    """Where a part's ZIP files lie."""
    return root / "images" / f"part-{part.index}of{part.count}"


def chunks_of(root: Path, part: Part, samples: list[Sample]) -> list[tuple[Path, list[Sample]]]:
    """The part's ZIP files and what each holds."""
    chunks = enumerate(batches_of(samples, CHUNK))
    named = [(f"{i:06d}-{digest64('chunk', *(s.sample_id for s in chunk)):016x}.zip", chunk) for i, chunk in chunks]
    return [(part_folder(root, part) / name, chunk) for name, chunk in named]


def write_images(
    root: Path,
    part: Part,
    samples: list[Sample],
    load: dict[str, Callable[[], np.ndarray]],
    size: int,
    max_skipped: float,
) -> None:
    """Writes the part's chunks that are not there yet. Images that cannot be read are listed and left out;
    a UserError when they are more than `max_skipped` of those seen so far (and more than one)."""
    folder = part_folder(root, part)
    folder.mkdir(parents=True, exist_ok=True)
    skipped_file = folder / "skipped.json"
    skipped: dict[str, str] = json.loads(skipped_file.read_text()) if skipped_file.exists() else {}

    def jpeg(sample: Sample) -> tuple[str, bytes | str]:
        try:
            pixels = load[sample.sample_id]()
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            return sample.sample_id, f"{sample.path}: {error}"
        out = io.BytesIO()
        square(pixels, size).save(out, format="JPEG", quality=QUALITY)
        return sample.sample_id, out.getvalue()

    with ThreadPoolExecutor(WORKERS) as pool, progress.bar(total=len(samples), desc="images", unit="image") as bar:
        for index, (file, chunk) in enumerate(chunks_of(root, part, samples)):
            if file.exists():
                progress.skip(bar, len(chunk))
            else:
                content = io.BytesIO()
                with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
                    for sample_id, data in pool.map(jpeg, chunk):
                        if isinstance(data, str):
                            skipped[sample_id] = data
                        else:  # a fixed date, so that the same images give the same file
                            skipped.pop(sample_id, None)  # it may have been mended since
                            archive.writestr(zipfile.ZipInfo(f"{sample_id}.jpg"), data)
                write_whole(skipped_file, json.dumps(skipped, indent=1))
                seen = min((index + 1) * CHUNK, len(samples))
                if len(skipped) > max(1, max_skipped * seen):
                    raise UserError(
                        f"{len(skipped)} of {seen} images could not be read (first: {next(iter(skipped.values()))}); "
                        f"the list is in {skipped_file}. Mend them, or raise max_skipped={max_skipped}"
                    )
                write_whole(file, content.getvalue())
                bar.update(len(chunk))


def skipped_ids(root: Path) -> set[str]:
    """Samples that have no image, over all parts."""
    files = (root / "images").glob("part-*/skipped.json")
    return {sample_id for file in files for sample_id in json.loads(file.read_text())}


def read_images(
    root: Path,
    part: Part,
    samples: list[Sample],
    batch: int,
    todo: Callable[[list[Sample]], list[Sample]],
) -> Iterator[tuple[list[Sample], Tensor]]:
    """The part's images in fixed batches: samples and uint8 [B,3,S,S]; decoded one batch ahead by threads.
    `todo` says which of a batch are still wanted; the others are not decoded."""
    chunks = chunks_of(root, part, samples)
    missing = [file for file, _ in chunks if not file.is_file()]
    if missing:
        raise UserError(f"there is no {missing[0]}; run the stage `images` with the same shard first")
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead: list[tuple[list[Sample], list[Future[np.ndarray]]]] = []
        for file, chunk in chunks:
            with zipfile.ZipFile(file) as archive:
                there = set(archive.namelist())
                named = [s for s in chunk if f"{s.sample_id}.jpg" in there]
                for own in batches_of(named, batch):
                    wanted = todo(own)
                    if not wanted:
                        continue
                    decoding = [pool.submit(_pixels, archive.read(f"{s.sample_id}.jpg")) for s in wanted]
                    ahead.append((wanted, decoding))
                    if len(ahead) > 1:
                        yield _collect(*ahead.pop(0))
        for item in ahead:
            yield _collect(*item)


class ImageArchive:
    """The images stage's squares by sample id, for a teacher that is asked while training."""

    def __init__(self, root: Path) -> None:
        self._file_of: dict[str, Path] = {}
        for path in sorted((root / "images").glob("part-*/*.zip")):
            with zipfile.ZipFile(path) as archive:
                self._file_of |= {name.removesuffix(".jpg"): path for name in archive.namelist()}
        if not self._file_of:
            raise UserError(f"{root}/images is empty: an online teacher needs the stage `images`")

    def __call__(self, ids: list[str]) -> Tensor:
        """RGB [R,3,S,S] in [0,1]."""
        pixels = []
        for sample_id in ids:
            with zipfile.ZipFile(self._file_of[sample_id]) as archive:
                pixels.append(_pixels(archive.read(f"{sample_id}.jpg")))
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def _pixels(jpeg: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image)


def _collect(samples: list[Sample], decoding: list[Future[np.ndarray]]) -> tuple[list[Sample], Tensor]:
    stacked = np.stack([future.result() for future in decoding])
    return samples, torch.from_numpy(stacked).permute(0, 3, 1, 2)
