"""The sources of images: each yields (split, name, class, image) rows, lazily, in a fixed order.

A row's split is the publisher's; tracks divide it further.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from urepa.core.errors import UserError
from urepa.data.lists.split_sizes import DIGITS
from urepa.data.sources.decoding import read
from urepa.data.sources.image_folder import FLAT, class_places, images_in, readable
from urepa.data.sources.source_image import SourceImage
from urepa.data.sources.table_sources import hub, parquet
from urepa.data.sources.tar_shards import webdataset

IMAGENET_NAME = re.compile(r"n\d{8}_\d+|ILSVRC2012_val_\d+")

# The number of images in the publishers' splits, for plans made before a data set is fetched
PUBLISHED = {
    "imagenet": {"train": 1_281_167, "test": 50_000},
    "uoft-cs/cifar10": {"train": 50_000, "test": 10_000},
    "uoft-cs/cifar100": {"train": 50_000, "test": 10_000},
    "zalando-datasets/fashion_mnist": {"train": 60_000, "test": 10_000},
    "scikit-learn": {"all": sum(DIGITS)},
}


def digits(images: str) -> Iterator[SourceImage]:
    """scikit-learn's digits: 1,797 real images of 8x8 with 17 grey levels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for i, (image, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        yield SourceImage(f"digits_{i:04d}", int(label), "all", partial(np.copy, grey), f"load_digits[{i}]")


def _open(file: Path) -> BinaryIO:
    return open(file, "rb")


def folder(images: str, suffixes: frozenset[str] | None = None) -> Iterator[SourceImage]:
    """DIR/CLASS/*, or DIR/train/CLASS/* with or without DIR/test/CLASS/* (or val/, as ImageNet has it); classes are
    numbered in alphabetical order, which for ImageNet's folder names is the usual numbering. Or DIR/*, one class, where
    no folder in DIR has images. `suffixes` are those of image files; None: all that Pillow reads here."""
    root, suffixes = Path(images), readable() if suffixes is None else suffixes
    classes, places = class_places(root, suffixes)
    for split, place in places.items():
        for class_id, name in enumerate(classes):
            for file in images_in(place / name, suffixes):
                path = place / name / file
                # ImageNet's names are unique; others may repeat in another class or split
                own = IMAGENET_NAME.fullmatch(path.stem)
                below = "" if name == FLAT else f"{name}_"  # no absolute path, so that the folder may be moved
                sample_id = path.stem if own else f"{split}_{below}{path.stem}"
                load, opened = partial(read, str(path)), partial(_open, path)
                yield SourceImage(sample_id, class_id, split, load, str(path.relative_to(root)), open=opened)


def _cifar_record(file: Path, index: int, labels: int) -> np.ndarray:
    """One 32x32 image of a binary batch: label bytes, then 3x1024 values, red first."""
    size = labels + 3072
    with open(file, "rb") as batch:
        batch.seek(index * size + labels)
        values = np.frombuffer(batch.read(3072), dtype=np.uint8)
    return values.reshape(3, 32, 32).transpose(1, 2, 0)


def cifar_files(images: str) -> tuple[int, list[tuple[str, Path, int]]]:
    """The label bytes of a record, and (split, file, records) per file. Raises UserError if a file is missing or
    truncated."""
    root, labels = Path(images), 1
    ten = sorted(root.glob("data_batch_*.bin"))
    places = [*(("train", f) for f in ten), ("test", root / "test_batch.bin")]
    if not ten:
        places, labels = [("train", root / "train.bin"), ("test", root / "test.bin")], 2
    files = []
    for split, file in places:
        if not file.is_file():
            raise UserError(f"data.images={images} lacks {file.name}: unpack CIFAR's binary archive there")
        records, rest = divmod(file.stat().st_size, labels + 3072)
        if rest:
            raise UserError(f"{file} is truncated: it has {rest} bytes after record {records}; copy it again")
        files.append((split, file, records))
    return labels, files


def cifar_binary(images: str) -> Iterator[SourceImage]:
    """CIFAR-10's data_batch_*.bin and test_batch.bin, or CIFAR-100's train.bin and test.bin (fine labels)."""
    labels, files = cifar_files(images)
    for split, file, records in files:
        for i in range(records):
            with open(file, "rb") as batch:
                batch.seek(i * (labels + 3072) + labels - 1)
                class_id = batch.read(1)[0]
            load = partial(_cifar_record, file, i, labels)
            yield SourceImage(f"{split}_{file.stem}_{i:05d}", class_id, split, load, f"{file.name}[{i}]")


def refuse_duplicates(rows: list[SourceImage]) -> None:
    """Raises UserError if two images would have one sample id (a.png beside a.jpg, say)."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.name in seen:
            raise UserError(
                f"{seen[row.name]} and {row.path} would both have the sample id '{row.name}'; rename one of the two"
            )
        seen[row.name] = row.path


def refuse_unfit_names(rows: list[SourceImage]) -> None:
    """Raises UserError for a file name that is not UTF-8."""
    for row in rows:
        try:
            (row.name + row.path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the file name {row.path!a} is not UTF-8; rename it") from error


SOURCES: dict[str, Callable[[str], Iterator[SourceImage]]] = {
    "digits": digits,
    "folder": folder,
    "cifar_binary": cifar_binary,
    "parquet": parquet,
    "webdataset": webdataset,
    "hub": hub,
}


def count_images(source: str, images: str) -> dict[str, int]:
    """Images by their publisher's split, without fetching any."""
    if images in PUBLISHED:
        return PUBLISHED[images]
    if source == "hub":
        raise UserError(f"the number of images in {images} is not known here; say how many to take (data.limit=N)")
    if source == "folder" and not Path(images).is_dir():
        raise UserError(
            f"data.images={images} is not a folder here, so its images cannot be counted; give data.images=FOLDER, or "
            "how many to take (data.limit=N; of a large track data.train_images=N data.val_images=N)"
        )
    return Counter(row.split for row in SOURCES[source](images))
