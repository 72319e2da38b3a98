"""The kinds of sources of images, and what their files' names tell: without torch."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path

from urepa.data.sources.image_folder import check_classes, class_places, readable


class Source(Enum):
    digits = "digits"
    folder = "folder"
    cifar_binary = "cifar_binary"
    parquet = "parquet"
    hub = "hub"


def check_images(source: str, images: str, *, by_class: bool) -> None:
    """UserError where a source's files are not there.

    Args:
        by_class: whether the images are to be in class folders, as they are for a track without captions.
    """
    if source == "folder":
        (check_classes if by_class else class_places)(Path(images), readable())
    elif source in ("cifar_binary", "parquet"):
        from urepa.data.sources.image_sources import cifar_files, parquet_files

        looks: dict[str, Callable[[str], object]] = {"cifar_binary": cifar_files, "parquet": parquet_files}
        looks[source](images)


def count_source_images(source: str, images: str) -> dict[str, int]:
    """The images by the publisher's split, "train" and "test"."""
    from urepa.data.sources.image_sources import count_images  # with numpy and Pillow

    return count_images(source, images)
