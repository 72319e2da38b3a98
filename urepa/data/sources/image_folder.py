"""A folder of images: its class folders, the files in them, and the files that are left out, by reason. Only names and
file types are examined; no image is opened.

Layout: DIR/CLASS/*, or DIR/train/CLASS/* with or without DIR/test/CLASS/* (validation/ or val/). If no folder in DIR
has images, the images in DIR itself are one class; this is for tracks with captions (`check_classes` for the others).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from importlib import import_module
from pathlib import Path

from urepa.core.errors import UserError
from urepa.core.escaping import printable

HELD_OUT = ("test", "validation", "val")  # the first of these with class folders is used
FLAT = "."  # the folder of the one class, relative to DIR, if the images lie in DIR itself
FLAT_NAME = "images"  # the name of that class
# the formats of photographs, and what to install if Pillow does not read one
PHOTOGRAPHS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp"), "another build of Pillow"),
    **dict.fromkeys((".webp", ".tif", ".tiff"), "another build of Pillow"),
    ".avif": "install Pillow 11.3 or later",
    **dict.fromkeys((".heic", ".heif", ".hif"), "install pillow-heif"),
}
# for lists of an earlier version, which did not record the suffixes it read
FORMER = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
SHOWN = 3  # names per kind in a message


class EntryKind(Enum):
    """The kind of a folder's entry; a link counts as its target. Values: the text for one and for several entries."""

    file = ("file", "files")
    folder = ("nested folder", "nested folders")
    dangling = ("dangling link", "dangling links")
    loop = ("link in a loop", "links in a loop")
    special = ("that is not a regular file", "that are not regular files")


@cache
def readable() -> frozenset[str]:
    """The suffixes, in lower case, that the installed Pillow reads, with pillow-heif if that is installed."""
    from PIL import Image

    with suppress(ModuleNotFoundError):
        import_module("pillow_heif").register_heif_opener()
    return frozenset(PHOTOGRAPHS) & {
        suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN
    }


def suffix_of(name: str) -> str:
    """A name's suffix in lower case: `.jpg` for `a.JPG`."""
    return os.path.splitext(name)[1].lower()


def images_in(folder: Path, suffixes: frozenset[str]) -> list[str]:
    """The names of a folder's images, sorted: regular files, and links to such, with one of the suffixes."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry, suffixes))


def has_images(folder: Path, suffixes: frozenset[str]) -> bool:
    """Whether the folder exists and has an image in it."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_is_image(entry, suffixes) for entry in entries)


def _is_image(entry: os.DirEntry[str], suffixes: frozenset[str]) -> bool:
    return suffix_of(entry.name) in suffixes and kind_of(entry) == EntryKind.file


def kind_of(entry: os.DirEntry[str]) -> EntryKind:
    """The kind of an entry, found without opening it."""
    try:
        if entry.is_file():
            return EntryKind.file
        if entry.is_dir():
            return EntryKind.folder
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return EntryKind.loop
    return EntryKind.dangling if entry.is_symlink() and not os.path.exists(entry.path) else EntryKind.special


def class_folders(root: Path, suffixes: frozenset[str]) -> list[str]:
    """The names of the folders with an image in them, in alphabetical order."""
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return [p.name for p in folders if has_images(p, suffixes)]


def class_places(root: Path, suffixes: frozenset[str]) -> tuple[list[str], dict[str, Path]]:
    """The names of the class folders, and the folder that contains them by split: "train" and "test", or "all".
    Raises UserError if it has no images."""
    places: dict[str, Path] = {}
    held_out = next((name for name in HELD_OUT if class_folders(root / name, suffixes)), None)
    classes = class_folders(root / "train", suffixes)
    if not classes and held_out is None:
        classes, places = class_folders(root, suffixes), {"all": root}
        if not classes and has_images(root, suffixes):
            classes = [FLAT]
    elif classes and held_out is None:
        unsorted = next((name for name in HELD_OUT if has_images(root / name, suffixes)), None)
        if unsorted is not None:
            raise UserError(
                f"{root / unsorted} has images but no class folders; sort them into one folder per class, as "
                f"{root / 'train'} has them, or take that folder away"
            )
        places = {"train": root / "train"}
    elif classes and held_out is not None:
        places = {"train": root / "train", "test": root / held_out}
        if class_folders(root / held_out, suffixes) != classes:
            raise UserError(
                f"{root / held_out} does not have the class folders that {root / 'train'} has; sort its images into "
                "one folder per class"
            )
    if not classes or not places:
        raise UserError(_without_classes(root, suffixes))
    return classes, places


def check_classes(root: Path, suffixes: frozenset[str]) -> None:
    """Raises UserError if a folder of images has no class folders."""
    if class_places(root, suffixes)[0] == [FLAT]:
        raise UserError(_without_classes(root, suffixes))


def class_names_in(root: Path, suffixes: frozenset[str]) -> list[str]:
    """The class names of a folder of images. Raises UserError if it has no images."""
    return [FLAT_NAME if name == FLAT else name for name in class_places(root, suffixes)[0]]


def _without_classes(root: Path, suffixes: frozenset[str]) -> str:
    if not root.is_dir():
        return f"data.images={root} is not a folder here; give data.images=FOLDER beside data.source=folder"
    others = LeftOut()
    for folder in sorted(p for place in (root, root / "train") if place.is_dir() for p in place.iterdir()):
        if folder.is_dir():
            others.look_into(folder, suffixes)
    there = f" ({others})" if others else ""
    return (
        f"data.images={root} has neither CLASS/* nor train/CLASS/* (with test/CLASS/* or val/) with images{there}; "
        "give data.images=FOLDER beside data.source=folder"
    )


# --- what is left out ---------------------------------------------------------------------------------------


@dataclass
class LeftOut:
    """The entries of a folder of images that are not read, by reason. `str` describes them; it is empty without any."""

    formats: Counter[str] = field(default_factory=Counter)  # by suffix
    kinds: Counter[EntryKind] = field(default_factory=Counter)  # of entries that are not regular files
    empty: list[str] = field(default_factory=list)  # class folders without an image
    loose: int = 0  # images beside the class folders

    def look_into(self, folder: Path, suffixes: frozenset[str], beside: frozenset[str] = frozenset()) -> None:
        """Counts the entries of a class folder that are left out, except files with the suffixes `beside` and hidden
        entries."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                kind, suffix = kind_of(entry), suffix_of(entry.name)
                if kind != EntryKind.file:
                    self.kinds[kind] += 1
                elif suffix not in suffixes | beside:
                    self.formats[suffix] += 1

    def __bool__(self) -> bool:
        return bool(self.formats or self.kinds or self.empty or self.loose)

    def __str__(self) -> str:
        never = {suffix: n for suffix, n in self.formats.items() if suffix not in PHOTOGRAPHS}
        elsewhere = {suffix: n for suffix, n in self.formats.items() if suffix in PHOTOGRAPHS}
        counted = [
            (sum(never.values()), "of formats that are not read", _numbers(never)),
            (sum(elsewhere.values()), "of formats that are not read here", _numbers(elsewhere, PHOTOGRAPHS)),
            (len(self.empty), "empty class" if len(self.empty) == 1 else "empty classes", _some(self.empty)),
            *((n, kind.value[n != 1], "") for kind, n in sorted(self.kinds.items(), key=lambda item: item[0].name)),
            (self.loose, f"image{'s' * (self.loose != 1)} beside the class folders", ""),
        ]
        return ", ".join(f"{n} {what}{f' ({names})' if names else ''}" for n, what, names in counted if n)


def _numbers(counts: dict[str, int], hints: dict[str, str] | None = None) -> str:
    """`.txt 2, .gif 1`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{_printable_name(suffix) if suffix else 'no suffix'} {n}" for suffix, n in ordered]
    if hints is not None:
        told = [f"{text}: {hints[suffix]}" for text, (suffix, _) in zip(told, ordered, strict=True)]
    return ", ".join(told[:SHOWN]) + (", ..." if len(told) > SHOWN else "")


def _printable_name(name: str) -> str:
    """A file's name for a terminal, also if it is not UTF-8."""
    return printable(name.encode(errors="backslashreplace").decode())


def _some(names: Iterable[str]) -> str:
    every = [_printable_name(name) for name in names]
    return ", ".join(every[:SHOWN]) + (", ..." if len(every) > SHOWN else "")


def count_left_out(root: Path, suffixes: frozenset[str], beside: frozenset[str] = frozenset()) -> LeftOut:
    """Counts the files that are not read, in the class folders of all splits and beside them. `beside` are suffixes of
    files that are read in addition to the images. Raises UserError as `class_places` does."""
    classes, places = class_places(root, suffixes)
    found = LeftOut()
    if classes == [FLAT]:
        found.look_into(root, suffixes, beside)
        return found
    for place in places.values():
        found.loose += len(images_in(place, suffixes))
        for folder in sorted(p for p in place.iterdir() if p.is_dir()):
            if folder.name not in classes:
                if folder.name.startswith("."):
                    continue
                found.empty.append(str(folder.relative_to(root)))
            found.look_into(folder, suffixes, beside)
    return found
