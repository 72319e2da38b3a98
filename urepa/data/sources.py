"""Where images come from: (split, name, class, image) rows, lazily, in a fixed order.

A row's split is the one its publisher gave it; PixelTrack divides further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from urepa.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass(frozen=True)
class Row:
    """`load()` returns uint8 [H,W,3] or [H,W]; `split` is "train", "test" or "all"."""

    name: str
    class_id: int
    split: str
    load: Callable[[], np.ndarray]


def digits(images: str) -> Iterator[Row]:
    """scikit-learn's digits: 1,797 real images of 8x8 with 17 grey levels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for i, (image, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        yield Row(f"digits_{i:04d}", int(label), "all", partial(np.copy, grey))


def _open(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def folder(images: str) -> Iterator[Row]:
    """DIR/{train,test}/CLASS/*.png; classes are numbered in alphabetical order."""
    root = Path(images)
    if not (root / "train").is_dir() or not (root / "test").is_dir():
        raise UserError(
            f"data.images={images} is not a folder with train/CLASS/*.png and test/CLASS/*.png; "
            "give data.images=FOLDER beside data.source=folder"
        )
    classes = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    for split in ("train", "test"):
        for class_id, name in enumerate(classes):
            for path in sorted((root / split / name).iterdir()):
                if path.suffix.lower() in SUFFIXES:
                    yield Row(f"{split}_{name}_{path.stem}", class_id, split, partial(_open, path))


def _decode(part: Any, index: int, column: str) -> np.ndarray:
    return np.asarray(part[index][column].convert("RGB"))


def _rows_of(dataset: Any) -> Iterator[Row]:
    """Rows of a Hugging Face DatasetDict with an image and an integer label column."""
    for split in ("train", "test"):
        if split not in dataset:
            raise UserError(f"the data set has splits {sorted(dataset)}; this track needs train and test")
        part = dataset[split]
        image = next((c for c in part.column_names if c in ("img", "image")), None)
        label = next((c for c in part.column_names if c in ("label", "fine_label")), None)
        if image is None or label is None:
            raise UserError(f"the data set has columns {part.column_names}; give one with image and label")
        labels = part[label]
        for i in range(len(part)):
            yield Row(f"{split}_{i:06d}", int(labels[i]), split, partial(_decode, part, i, image))


def parquet(images: str) -> Iterator[Row]:
    """DIR/train*.parquet and DIR/test*.parquet, as Hugging Face `datasets` writes them."""
    from datasets import Image, load_dataset

    files = {split: sorted(map(str, Path(images).glob(f"{split}*.parquet"))) for split in ("train", "test")}
    if not all(files.values()):
        raise UserError(
            f"data.images={images} has no train*.parquet and test*.parquet; "
            "give data.images=FOLDER beside data.source=parquet"
        )
    dataset = load_dataset("parquet", data_files=files)
    column = "img" if "img" in dataset["train"].column_names else "image"
    yield from _rows_of(dataset.cast_column(column, Image()))


def hub(images: str) -> Iterator[Row]:
    """A data set of the Hugging Face hub, by name; never with code of its own."""
    from datasets import load_dataset

    try:
        dataset = load_dataset(images)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"data.images={images} could not be fetched from the hub ({first}); with the images on disk, "
            "give data.source=folder data.images=FOLDER"
        ) from error
    yield from _rows_of(dataset)


SOURCES: dict[str, Callable[[str], Iterator[Row]]] = {
    "digits": digits,
    "folder": folder,
    "parquet": parquet,
    "hub": hub,
}
