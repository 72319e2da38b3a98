"""Whether a source's images are those that a track's caches were made from, judged by its files.

FOLDER/source_files.npz holds the image folders with their times and the suffixes of images; for up to `LOOKED_AT` files
also their paths, sizes, times and BLAKE2b digests. A file of the recorded size and time counts as unchanged, as in git;
if only the time differs, as in a copy, its content is read. With more files only the folders' times are compared, which
shows added and removed files; a file that was rewritten in place is then not noticed.

Shapes: F files.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.data.sources.image_folder import FORMER, class_places, images_in, readable

FILE = "source_files.npz"
LOOKED_AT = 50_000
READERS = 4
FEW = 1000  # with fewer files no progress bar is shown
SHOWN = 3


class Files(NamedTuple):
    """The folders and files of a source's images, relative to `root`."""

    root: Path
    folders: list[str]
    files: list[str]


def _of_folder(root: Path, suffixes: frozenset[str]) -> Files:
    classes, splits = class_places(root, suffixes)
    found = [place / name for place in splits.values() for name in classes]
    places = [str((folder / name).relative_to(root)) for folder in found for name in images_in(folder, suffixes)]
    parents = {root, *found, *splits.values()}
    return Files(root, sorted(str(folder.relative_to(root)) for folder in parents), sorted(places))


def _file_finder(pattern: str) -> Callable[[Path, frozenset[str]], Files]:
    def find_files(root: Path, suffixes: frozenset[str]) -> Files:
        return Files(root, [], sorted(file.name for file in root.glob(pattern) if file.is_file()))

    return find_files


# for sources whose images are the user's files; the others are identified by their name
FILES: dict[str, Callable[[Path, frozenset[str]], Files]] = {
    "folder": _of_folder,
    "cifar_binary": _file_finder("*.bin"),
    "parquet": _file_finder("*.parquet"),
    "webdataset": _file_finder("*.tar"),
}


def record(source: str, images: str, folder: Path) -> bool:
    """Records the images' files before any is read; does nothing for sources that are not the user's files. Returns
    whether a different record existed before: of a build that was killed, or of images that have changed since."""
    there = (folder / FILE).exists()
    if source not in FILES or (there and changes(source, images, folder) is None):
        return False
    found = FILES[source](Path(images), readable())
    arrays: dict[str, Any] = {
        "suffixes": _as_bytes(sorted(readable())),
        "folders": _as_bytes(found.folders),
        "folder_times": np.array([_time(found.root / name) for name in found.folders], np.int64),
        "count": np.array(len(found.files)),
        "listing": np.array(_listing(found.files), "S32"),
    }
    if len(found.files) <= LOOKED_AT:
        stats = [(found.root / name).stat() for name in found.files]
        arrays |= {
            "files": _as_bytes(found.files),
            "sizes": np.array([s.st_size for s in stats], np.int64),
            "times": np.array([s.st_mtime_ns for s in stats], np.int64),
            "digests": np.array(_digests(found.root, found.files), "S32"),
        }
    content = io.BytesIO()
    np.savez(content, **arrays)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, content.getvalue())
    return there


def refuse_changes(track: Any) -> None:
    """Raises UserError if a track's images are not those that its caches were made from."""
    changed = track.source_changes()
    if changed is not None:
        raise UserError(
            f"data.images={track.images} is not what the caches in {track.folder} were made from ({changed}); put it "
            "back, or give another data.root for caches of what is there now"
        )


def changes(source: str, images: str, folder: Path) -> str | None:
    """How the images differ from those that the caches in `folder` were made from, as text; None if they do not. Also
    None if it cannot be told: for sources that are not the user's files, for files that are gone (the caches are
    used), and for caches of an earlier version, which a printed line reports."""
    root = Path(images)
    if source not in FILES or not root.is_dir():
        return None
    if not (folder / FILE).exists():
        print(
            f"{folder}: an earlier version made these caches and did not record the files of {images}; "
            "they are not compared"
        )
        return None
    arrays = _read_record(folder / FILE)
    return _added_or_removed(source, root, arrays) or _rewritten_files(root, arrays)


def _read_record(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as known:
            return {name: known[name] for name in known.files}
    except (ValueError, OSError, KeyError, BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}); delete it to skip the comparison") from error


def _added_or_removed(source: str, root: Path, known: dict[str, np.ndarray]) -> str | None:
    """Which files were added or removed, as text. If no folder's time has changed, none were."""
    times = zip(_as_text(known["folders"]), known["folder_times"].tolist(), strict=True)
    if len(known["folders"]) and all(_time(root / name) == time for name, time in times):
        return None
    try:
        found = FILES[source](root, frozenset(_as_text(known["suffixes"])) if "suffixes" in known else FORMER)
    except UserError as error:  # the files are no longer a source of this kind
        return str(error)
    if "files" not in known:
        same = _listing(found.files) == known["listing"].item()
        return None if same else f"other files: {int(known['count'])} then, {len(found.files)} now"
    before, now = set(_as_text(known["files"])), set(found.files)
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("added", now - before), ("gone", before - now))
        if names
    ]
    return ", ".join(parts) if parts else None


def _rewritten_files(root: Path, known: dict[str, np.ndarray]) -> str | None:
    """Which files have other content, as text. Files with the recorded size and time are not read."""
    if "files" not in known:
        return None
    names, sizes, times = _as_text(known["files"]), known["sizes"].tolist(), known["times"].tolist()
    stats = [(root / name).stat() for name in names]
    other = [name for name, size, s in zip(names, sizes, stats, strict=True) if s.st_size != size]
    touched = [
        i for i, s in enumerate(stats) if s.st_size == sizes[i] and s.st_mtime_ns != times[i]
    ]  # a copy has a time of its own
    digests = _digests(root, [names[i] for i in touched])
    other += [names[i] for i, d in zip(touched, digests, strict=True) if d != known["digests"][i]]
    return f"{len(other)} rewritten ({_some(set(other))})" if other else None


def _digests(root: Path, names: list[str]) -> list[bytes]:
    """BLAKE2b of the files, in hexadecimal; empty for a file that cannot be read, which the build reports."""

    def digest(name: str) -> bytes:
        try:
            with open(root / name, "rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest().encode()
        except OSError:
            return b""

    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(digest, names)
        bar = progress.bar(
            found, total=len(names), desc="image files", unit="file", leave=False, disable=len(names) < FEW
        )
        return list(bar)


def _listing(names: list[str]) -> bytes:
    """A digest of the names."""
    return hashlib.blake2b(_as_bytes(names).tobytes(), digest_size=16).hexdigest().encode()


def _time(folder: Path) -> int:
    return folder.stat().st_mtime_ns if folder.is_dir() else 0


def _as_bytes(names: list[str]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8)


def _as_text(names: np.ndarray) -> list[str]:
    text = names.tobytes().decode(errors="surrogateescape")
    return text.split("\0") if text else []


def _some(names: set[str]) -> str:
    shown = sorted(names)[:SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > SHOWN else "")
