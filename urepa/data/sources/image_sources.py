"""Where images come from: (split, name, class, image) rows, lazily, in a fixed order.

A row's split is the one its publisher gave it; tracks divide further.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from urepa.core.errors import UserError
from urepa.core.hub_names import download_failure, resolve
from urepa.data.lists.split_sizes import DIGITS
from urepa.data.sources.decoding import large_images_as_value_errors, read, to_rgb
from urepa.data.sources.image_folder import FLAT, class_places, images_in, readable

IMAGENET_NAME = re.compile(r"n\d{8}_\d+|ILSVRC2012_val_\d+")
HELD_OUT = ("test", "validation")  # what publishers call it; the first that has labels

# How many images the publishers' splits have, for what is planned before it is fetched
PUBLISHED = {
    "imagenet": {"train": 1_281_167, "test": 50_000},
    "uoft-cs/cifar10": {"train": 50_000, "test": 10_000},
    "uoft-cs/cifar100": {"train": 50_000, "test": 10_000},
    "scikit-learn": {"all": sum(DIGITS)},
}


@dataclass(frozen=True, slots=True)
class SourceImage:
    """`load()` returns uint8 [H,W,3] or [H,W]; `split` is "train", "test" or "all"; `path` says where it lies."""

    name: str
    class_id: int
    split: str
    load: Callable[[], np.ndarray]
    path: str


def digits(images: str) -> Iterator[SourceImage]:
    """scikit-learn's digits: 1,797 real images of 8x8 with 17 grey levels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for i, (image, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        yield SourceImage(f"digits_{i:04d}", int(label), "all", partial(np.copy, grey), f"load_digits[{i}]")


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
                # ImageNet's own names say enough; others may repeat in another class or split
                own = IMAGENET_NAME.fullmatch(path.stem)
                below = "" if name == FLAT else f"{name}_"  # of a folder that may be moved
                sample_id = path.stem if own else f"{split}_{below}{path.stem}"
                yield SourceImage(sample_id, class_id, split, partial(read, str(path)), str(path.relative_to(root)))


def _cifar_record(file: Path, index: int, labels: int) -> np.ndarray:
    """One 32x32 image of a binary batch: label bytes, then 3x1024 values, red first."""
    size = labels + 3072
    with open(file, "rb") as batch:
        batch.seek(index * size + labels)
        values = np.frombuffer(batch.read(3072), dtype=np.uint8)
    return values.reshape(3, 32, 32).transpose(1, 2, 0)


def cifar_files(images: str) -> tuple[int, list[tuple[str, Path, int]]]:
    """Label bytes of a record, and (split, file, records). UserError where a file is missing or cut short."""
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
            raise UserError(f"{file} is cut short: it has {rest} bytes after record {records}; copy it again")
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


def _decode(part: Any, index: int, column: str) -> np.ndarray:
    with large_images_as_value_errors():
        return to_rgb(part[index][column])


def _rows_of(dataset: Any) -> Iterator[SourceImage]:
    """Rows of a Hugging Face DatasetDict with an image and an integer label column. A test split without labels
    (-1, as ImageNet's) is passed over for the validation split."""
    labels = {split: _labels(dataset[split]) for split in dataset}
    held_out = next((s for s in HELD_OUT if s in labels and min(labels[s], default=-1) >= 0), None)
    if "train" not in labels or held_out is None:
        raise UserError(
            f"the data set has splits {sorted(labels)}; this track needs train, and test or validation with labels"
        )
    for name, split in (("train", "train"), (held_out, "test")):
        part = dataset[name]
        image = next((c for c in part.column_names if c in ("img", "image")), None)
        if image is None:
            raise UserError(f"the data set has columns {part.column_names}; give one with image and label")
        for i, class_id in enumerate(labels[name]):
            yield SourceImage(f"{name}_{i:06d}", class_id, split, partial(_decode, part, i, image), f"{name}[{i}]")


def _labels(part: Any) -> list[int]:
    label = next((c for c in part.column_names if c in ("label", "fine_label")), None)
    if label is None:
        raise UserError(f"the data set has columns {part.column_names}; give one with image and label")
    return [int(class_id) for class_id in part[label]]


def parquet_files(images: str) -> dict[str, list[str]]:
    """Files by split. UserError where there are none to train on or none to test on."""
    found = {split: sorted(map(str, Path(images).glob(f"{split}*.parquet"))) for split in ("train", *HELD_OUT)}
    files = {split: paths for split, paths in found.items() if paths}
    if "train" not in files or len(files) < 2:
        raise UserError(
            f"data.images={images} has no train*.parquet and test*.parquet (or validation*.parquet); "
            "give data.images=FOLDER beside data.source=parquet"
        )
    return files


def parquet(images: str) -> Iterator[SourceImage]:
    """DIR/train*.parquet and DIR/test*.parquet (or validation*), as Hugging Face `datasets` writes them."""
    from datasets import Image, load_dataset
    from pyarrow.parquet import read_metadata

    files = parquet_files(images)
    for file in chain(*files.values()):
        try:
            read_metadata(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is no whole parquet file ({error}); copy it again") from error
    dataset = load_dataset("parquet", data_files=files)
    for column in {"img", "image"} & set(dataset["train"].column_names):
        dataset = dataset.cast_column(column, Image())
    yield from _rows_of(dataset)


def hub(images: str) -> Iterator[SourceImage]:
    """A data set of the Hugging Face hub, by name or NAME@REVISION; never with code of its own."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.utils import logging

    name, revision = resolve(images)
    for place in (images, name):  # `datasets` would take it for what is meant
        if Path(place).exists():
            raise UserError(f"data.images={place} is a folder here: give data.source=folder (or parquet) with it")
    logging.set_verbosity_error()  # each of its five attempts would say that there is no network
    print(f"asking the hub for {images}", flush=True)
    try:
        dataset = load_dataset(name, revision=None if revision == "main" else revision)
    except (OSError, ValueError) as error:
        reason = _refusal(name) if isinstance(error, DatasetNotFoundError) else error
        raise UserError(
            f"data.images={images} could not be fetched from the hub "
            f"({download_failure(reason, images, 'datasets/')}); "
            "with the images on disk, give data.source=folder data.images=FOLDER"
        ) from error
    yield from _rows_of(dataset)


def _refusal(name: str) -> Exception:
    """The hub's own answer: `datasets` says of a gated and of a missing set that it is not there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().auth_check(name, repo_type="dataset")
    except HfHubHTTPError as error:
        return error
    return UserError("it is there but holds no files that `datasets` can read")


def refuse_duplicates(rows: list[SourceImage]) -> None:
    """UserError where two images would have one sample id (a.png beside a.jpg, say)."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.name in seen:
            raise UserError(
                f"{seen[row.name]} and {row.path} would both have the sample id '{row.name}'; rename one of the two"
            )
        seen[row.name] = row.path


def refuse_unfit_names(rows: list[SourceImage]) -> None:
    """UserError for a file name that is not UTF-8."""
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
    "hub": hub,
}


def count_images(source: str, images: str) -> dict[str, int]:
    """Images by their publisher's split, without fetching any."""
    if images in PUBLISHED:
        return PUBLISHED[images]
    if source == "hub":
        raise UserError(f"how many images {images} has is not known here; say how many to take (data.limit=N)")
    if source == "folder" and not Path(images).is_dir():
        raise UserError(
            f"data.images={images} is not a folder here, so its images cannot be counted; give data.images=FOLDER, or "
            "how many to take (data.limit=N; of a large track data.train_images=N data.val_images=N)"
        )
    return Counter(row.split for row in SOURCES[source](images))
