"""The kinds of image sources, and what can be told from their files' names, without torch."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path

from urepa.data.sources.image_folder import check_classes, class_places, readable

# the sources whose images are encoded files of any size; the same sources can have captions
PHOTOGRAPHS = CAPTIONED = ("folder", "parquet", "webdataset", "hub")


class Source(Enum):
    digits = "digits"
    folder = "folder"
    cifar_binary = "cifar_binary"
    parquet = "parquet"
    webdataset = "webdataset"
    hub = "hub"


def check_images(source: str, images: str, *, by_class: bool) -> None:
    """Raises UserError if a source's files are missing.

    Args:
        by_class: whether the images must be in class folders, as for a track without captions.
    """
    if source == "folder":
        (check_classes if by_class else class_places)(Path(images), readable())
    elif source in ("cifar_binary", "parquet", "webdataset"):
        from urepa.data.sources.image_sources import cifar_files
        from urepa.data.sources.table_sources import parquet_files
        from urepa.data.sources.tar_shards import shards_of

        looks: dict[str, Callable[[str], object]] = {"cifar_binary": cifar_files, "parquet": parquet_files}
        (looks | {"webdataset": shards_of})[source](images)


def has_one_class(source: str, images: str) -> bool:
    """Whether all images are of one class because the source has no labels; the images are not read."""
    if source == "parquet":
        from urepa.data.sources.table_sources import has_labels, parquet_files

        return not has_labels(parquet_files(images)["train"][0])
    if source == "webdataset":
        from urepa.data.sources import tar_shards

        return not tar_shards.has_labels(tar_shards.shards_of(images)["train"][0])
    return False


def count_source_images(source: str, images: str) -> dict[str, int]:
    """The number of images per publisher's split, "train" and "test"."""
    from urepa.data.sources.image_sources import count_images  # with numpy and Pillow

    return count_images(source, images)
