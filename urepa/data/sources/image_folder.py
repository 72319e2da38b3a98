"""A folder of images: its class folders, the files in them, and what is left out, by reason. Names and kinds of files
are looked at; no image is opened.

Layout: DIR/CLASS/*, or DIR/train/CLASS/* with or without DIR/test/CLASS/* (validation/ or val/). Where no folder in DIR
has images, the images in DIR itself are one class: for tracks with captions (`check_classes` is for the others).
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

HELD_OUT = ("test", "validation", "val")  # the first that has class folders
FLAT = "."  # the folder of the one class, below DIR, where the images lie in DIR itself
FLAT_NAME = "images"  # what that class is called
# the formats of photographs, and what a Pillow that does not read one wants
PHOTOGRAPHS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp"), "another build of Pillow"),
    **dict.fromkeys((".webp", ".tif", ".tiff"), "another build of Pillow"),
    ".avif": "install Pillow 11.3 or later",
    **dict.fromkeys((".heic", ".heif", ".hif"), "install pillow-heif"),
}
# of lists that an earlier version made, which did not record what it read
FORMER = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
SHOWN = 3  # names of a kind in a sentence


class EntryKind(Enum):
    """What a folder's entry is; a link is what it leads to. In words: of one, of several."""

    file = ("file", "files")
    folder = ("nested folder", "nested folders")
    dangling = ("dangling link", "dangling links")
    loop = ("link in a loop", "links in a loop")
    special = ("that is not a regular file", "that are not regular files")


@cache
def readable() -> frozenset[str]:
    """The suffixes, in lower case, that Pillow reads here, with pillow-heif where that is installed."""
    from PIL import Image

    with suppress(ModuleNotFoundError):
        import_module("pillow_heif").register_heif_opener()
    return frozenset(PHOTOGRAPHS) & {
        suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN
    }


def suffix_of(name: str) -> str:
    """`.jpg` of `a.JPG`."""
    return os.path.splitext(name)[1].lower()


def images_in(folder: Path, suffixes: frozenset[str]) -> list[str]:
    """The names of a folder's images, sorted: regular files, and links to such, with one of the suffixes."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry, suffixes))


def has_images(folder: Path, suffixes: frozenset[str]) -> bool:
    """Is there a folder of this name with an image in it?"""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(_is_image(entry, suffixes) for entry in entries)


def _is_image(entry: os.DirEntry[str], suffixes: frozenset[str]) -> bool:
    return suffix_of(entry.name) in suffixes and kind_of(entry) == EntryKind.file


def kind_of(entry: os.DirEntry[str]) -> EntryKind:
    """What an entry is, found without opening it."""
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
    """The classes' folders of a folder of images, and the folder that has these by split: "train" and "test", or "all".
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
    """What the classes of a folder of images are called. Raises UserError if it has no images."""
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
    """What lies in a folder of images and is not read, by reason; in words by `str`, empty where there is nothing."""

    formats: Counter[str] = field(default_factory=Counter)  # by suffix
    kinds: Counter[EntryKind] = field(default_factory=Counter)  # of what is no regular file
    empty: list[str] = field(default_factory=list)  # class folders without an image
    loose: int = 0  # images beside the class folders

    def look_into(self, folder: Path, suffixes: frozenset[str], beside: frozenset[str] = frozenset()) -> None:
        """Counts what is left out of a class folder, but for files with the suffixes `beside`. Hidden entries are not
        meant to be seen."""
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
    """A file's name for a terminal, also one that is no UTF-8."""
    return printable(name.encode(errors="backslashreplace").decode())


def _some(names: Iterable[str]) -> str:
    every = [_printable_name(name) for name in names]
    return ", ".join(every[:SHOWN]) + (", ..." if len(every) > SHOWN else "")


def count_left_out(root: Path, suffixes: frozenset[str], beside: frozenset[str] = frozenset()) -> LeftOut:
    """Counts the files that are not read, in the class folders of all splits or beside them; `beside` are suffixes of
    those that are read beside the images. UserError as `class_places`."""
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
