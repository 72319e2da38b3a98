"""The kinds of sources of images, and what their files' names tell: without torch."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path

from urepa.data.sources.image_folder import class_places, readable


class Source(Enum):
    digits = "digits"
    folder = "folder"
    cifar_binary = "cifar_binary"
    parquet = "parquet"
    hub = "hub"


def check_images(source: str, images: str) -> None:
    """UserError where a source's files are not there."""
    if source == "folder":
        class_places(Path(images), readable())
    elif source in ("cifar_binary", "parquet"):
        from urepa.data.sources.image_sources import cifar_files, parquet_files

        looks: dict[str, Callable[[str], object]] = {"cifar_binary": cifar_files, "parquet": parquet_files}
        looks[source](images)


def count_source_images(source: str, images: str) -> dict[str, int]:
    """The images by the publisher's split, "train" and "test"."""
    from urepa.data.sources.image_sources import count_images  # with numpy and Pillow

    return count_images(source, images)
