"""Images in tables in the format of Hugging Face: parquet files, and data sets of the hub by name.

Columns: `image` or `img` (struct{bytes,path}, or bytes); `label` or `fine_label`, which may be absent if there is a
column of texts (all images are then of one class); captions, found by `caption_text.find_column`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from urepa.core.errors import UserError
from urepa.core.hub_names import download_failure, resolve
from urepa.data.sources.caption_text import find_column
from urepa.data.sources.decoding import read
from urepa.data.sources.source_image import SourceImage
from urepa.data.sources.split_files import files_by_split

HELD_OUT = ("test", "validation")  # publishers' names; the first of these with labels is used
IMAGES, LABELS = ("img", "image"), ("label", "fine_label")  # names of columns


class _Table:
    """The rows of one split; cells are read on access."""

    def __init__(self, part: Any, where: str) -> None:
        self._part, self._where = part, where
        image = next((c for c in part.column_names if c in IMAGES), None)
        if image is None:
            raise UserError(f"the data set has columns {part.column_names}; give one with image and label")
        self._image = image
        self._images = _undecoded(part.select_columns([image]), image)
        self._texts = cache(self._select)

    def labels(self) -> list[int]:
        """Every row's label; 0 if there is no column of labels but one of texts."""
        part = self._part
        label = next((c for c in part.column_names if c in LABELS), None)
        if label is None:
            if any(map(_holds_text, part.features.values())):
                return [0] * len(part)
            raise UserError(f"the data set has columns {part.column_names}; give one with image and label")
        try:
            return [int(class_id) for class_id in part[label]]
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._where}: the column {label} holds values that are not class numbers") from error

    def open(self, index: int) -> BinaryIO:
        """A row's image as a file. Raises ValueError if the row has none."""
        cell = self._images[index][self._image]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise ValueError("the row has no image")
        return open(cell["path"], "rb") if cell["bytes"] is None else io.BytesIO(cell["bytes"])

    def load(self, index: int) -> np.ndarray:
        """A row's image, uint8 [H,W,3] or [H,W]."""
        with self.open(index) as file:
            return read(file)

    def captions(self, index: int, column: str | None) -> object:
        """A row's value in the column of captions."""
        texts, name = self._texts(column)
        return texts[index][name]

    def _select(self, column: str | None) -> tuple[Any, str]:
        name = find_column(self._part.column_names, column, self._where)
        return self._part.select_columns([name]), name


def _undecoded(images: Any, column: str) -> Any:
    """A column of images as undecoded bytes. Raises UserError if it holds something else."""
    from datasets import Image

    try:
        return images.cast_column(column, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are subclasses of these
        kind = images.features[column]
        raise UserError(
            f"the column {column} holds {kind}, not encoded images; store bytes, or a struct of bytes and path"
        ) from error


def _holds_text(feature: Any) -> bool:
    """Whether a column holds texts or lists of texts."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) else inner
    return getattr(inner, "dtype", "") in ("string", "large_string")


def _rows_of(dataset: Any, where: str) -> Iterator[SourceImage]:
    """The rows of a Hugging Face DatasetDict. If the test split has no labels (-1, as in ImageNet), the validation
    split is used."""
    tables = {split: _Table(dataset[split], f"{where} ({split})") for split in ("train", *HELD_OUT) if split in dataset}
    labels = {split: table.labels() for split, table in tables.items()}
    held_out = next((s for s in HELD_OUT if s in labels and min(labels[s], default=-1) >= 0), None)
    if "train" not in labels or (held_out is None and len(labels) > 1):
        raise UserError(
            f"the data set has splits {sorted(dataset)}; this track needs train, alone or with a test or "
            "validation split that has labels"
        )
    for name, split in (("train", "train"), (held_out, "test")):
        if name is None:  # the track draws held-out images from the training images
            continue
        table = tables[name]
        for i, class_id in enumerate(labels[name]):
            opened, captions = partial(table.open, i), partial(table.captions, i)
            load, place = partial(table.load, i), f"{name}[{i}]"
            yield SourceImage(f"{name}_{i:06d}", class_id, split, load, place, open=opened, captions=captions)


def parquet_files(images: str) -> dict[str, list[str]]:
    """The parquet files by split. Raises UserError if there are none for training."""
    files = files_by_split(Path(images), ".parquet")[0]
    if "train" not in files:
        raise UserError(
            f"data.images={images} has no train*.parquet (with or without test*.parquet or validation*.parquet); "
            "give data.images=FOLDER beside data.source=parquet"
        )
    return {split: list(map(str, own)) for split, own in files.items()}


def parquet(images: str) -> Iterator[SourceImage]:
    """DIR/train*.parquet, and DIR/test*.parquet (or validation*) if there are any, as written by Hugging Face
    `datasets`; DIR/*.parquet if no file is named by a split."""
    from datasets import load_dataset
    from pyarrow.parquet import read_metadata

    files = parquet_files(images)
    for file in chain(*files.values()):
        try:
            read_metadata(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not a complete parquet file ({error}); copy it again") from error
    try:
        dataset = load_dataset("parquet", data_files=files)
    except (OSError, ValueError, _dataset_error()) as error:
        raise UserError(f"the parquet files of {images} cannot be read together ({_first_line(error)})") from error
    yield from _rows_of(dataset, f"data.images={images}")


def has_labels(file: str) -> bool:
    """Whether a parquet file has a column of labels."""
    from pyarrow.parquet import read_schema

    try:
        return bool({*LABELS} & {*read_schema(file).names})
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a complete parquet file ({error}); copy it again") from error


def hub(images: str) -> Iterator[SourceImage]:
    """A data set of the Hugging Face hub, by name or NAME@REVISION; code in a data set is never run."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.utils import logging

    name, revision = resolve(images)
    for place in (images, name):  # `datasets` would read the folder instead
        if Path(place).exists():
            raise UserError(f"data.images={place} is a folder here: give data.source=folder (or parquet) with it")
    logging.set_verbosity_error()  # otherwise each of its five attempts warns that there is no network
    print(f"asking the hub for {images}", flush=True)
    try:
        dataset = load_dataset(name, revision=None if revision == "main" else revision)
    except (OSError, ValueError, RuntimeError, _dataset_error()) as error:  # RuntimeError: a data set with code
        reason = _refusal(name) if isinstance(error, DatasetNotFoundError) else error
        raise UserError(
            f"data.images={images} could not be fetched from the hub "
            f"({download_failure(reason, images, 'datasets/')}); "
            "with the images on disk, give data.source=folder data.images=FOLDER"
        ) from error
    yield from _rows_of(dataset, f"data.images={images}")


def _dataset_error() -> type[Exception]:
    """The class of `datasets`' errors for files that it cannot read as a table."""
    from datasets.exceptions import DatasetsError

    return DatasetsError


def _first_line(error: Exception) -> str:
    """The first line of the error's cause, which `datasets` wraps."""
    reason = error if error.__cause__ is None else error.__cause__
    return (str(reason).splitlines() or [type(reason).__name__])[0]


def _refusal(name: str) -> Exception:
    """The hub's own error: `datasets` reports a gated data set as missing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().auth_check(name, repo_type="dataset")
    except HfHubHTTPError as error:
        return error
    return UserError("it exists but has no files that `datasets` can read")
