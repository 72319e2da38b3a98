"""The classes of a track: their number, and their names, which are stored beside its lists.

FOLDER/classes.json: the names as a list, in the order of the class ids. Tracks of earlier versions have none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.core.hashing import digest64
from urepa.data.sources.image_folder import class_names_in, class_places, readable
from urepa.data.sources.source_files import has_one_class

FILE = "classes.json"


def class_names(name: str) -> list[str]:
    """The names in a text file with one name per line, in the order of the class ids. `imagenet` names the file that is
    shipped with the package."""
    file = Path(__file__).with_name("imagenet_classes.txt") if name == "imagenet" else Path(name)
    if not file.is_file():
        raise UserError(f"data.class_names={name} is neither 'imagenet' nor a file with one name per line")
    return file.read_text().splitlines()


def names_at(source: str, images: str, suffixes: frozenset[str]) -> list[str]:
    """A source's class names: the names of a folder's class folders. [] for a source without names."""
    return class_names_in(Path(images), suffixes) if source == "folder" else []


def write_names(folder: Path, names: list[str]) -> None:
    """Writes FOLDER/classes.json if there are names."""
    if names:
        write_whole(folder / FILE, json.dumps(names, indent=1))


def read_names(folder: Path, num_classes: int) -> list[str]:
    """The names in a folder's classes.json; [] without that file. Raises UserError if they are not `num_classes`
    names."""
    file = folder / FILE
    if not file.is_file():
        return []
    names: list[str] = read_json(file, list)
    if len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} is not a list of the names of {num_classes} classes; delete it, or put it back")
    return names


def names_beside(weights: Path, num_classes: int) -> list[str]:
    """The class names beside exported weights; `weights` is their folder or a file in it."""
    folder = weights if weights.is_dir() else weights.parent
    return read_names(folder, num_classes) if (folder / "config.yaml").is_file() else []


def pixel_folder(
    root: str,
    source: str,
    images: str,
    limit: int | None,
    validation_images: int,
    test_images: int,
    channels: int,
    sizes: Sequence[str],
) -> Path:
    """The folder of a small track's caches. `sizes` are the sizes that images are cut to: "64", or "64x64" and others
    if there are buckets."""
    size = "all" if limit is None else limit
    place = f"{digest64(images):016x}"[:6]  # so that two image folders have two caches
    return Path(root) / f"{source}-{place}_{size}_{validation_images}_{test_images}_{channels}x{'+'.join(sizes)}"


def count_classes(source: str, images: str, caches: Path) -> int:
    """The number of classes of the finished caches in this folder. Without caches it is the number of class folders of
    `images`, or one if parquet files or shards have no labels. Raises UserError if there is neither."""
    manifest = caches / "latents" / "manifest.json"
    if manifest.is_file():
        return int(read_json(manifest)["num_classes"])
    return count_source_classes(source, images)


def count_source_classes(source: str, images: str) -> int:
    """The number of class folders of `images`; one if it has none, or if parquet files or shards have no labels. Raises
    UserError for another source."""
    if Path(images).is_dir() and has_one_class(source, images):
        return 1
    if source != "folder":
        raise UserError(f"the classes of data.source={source} cannot be counted; give data.num_classes=N")
    if not Path(images).is_dir():
        raise UserError(
            f"data.images={images} is not a folder here, so its classes cannot be counted; give data.images=FOLDER, or "
            "data.num_classes=N"
        )
    return len(class_places(Path(images), readable())[0])
