"""Atomic writes of files, checks of target paths, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from urepa.core.errors import UserError

# What torch.load raises for a damaged file or another program's, besides UnpicklingError for other content than tensors
DAMAGED = (RuntimeError, EOFError, LookupError, ValueError, AssertionError, struct.error)
FULL = (errno.ENOSPC, errno.EDQUOT)  # error numbers of a full disk


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable in case of a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file atomically: to a temporary file, fsync, rename."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_json(path: Path, kind: type | tuple[type, ...] = dict) -> Any:
    """The content of a JSON file, an object unless another `kind` is given. Raises UserError if it is damaged or of
    another program, and OSError if it cannot be read."""
    try:
        value = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, or not JSON ({error}); put it back from a copy") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not what urepa writes there; put it back")
    return value


def check_file_target(key: str, path: Path) -> None:
    """Raises UserError if the file in KEY=PATH could not be written. To be called before any work; leaves no file."""
    if path.is_dir():
        raise UserError(f"{key}={path} is a folder; give a file in it, {key}={path / 'NAME'}")
    if not path.parent.is_dir():
        why = "is no folder" if path.parent.exists() else "is not there"
        raise UserError(f"{key}={path} cannot be written, as {path.parent} {why}; make that folder, or give another")
    _check_writable(key, path, path.parent)


def check_folder_target(key: str, path: Path) -> None:
    """Raises UserError if the folder in KEY=PATH could not be created or written to. To be called before any work;
    leaves nothing."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"{key}={path} cannot be a folder, as {there} is a file; give another path")
    _check_writable(key, path, there)


def check_folder(key: str, path: Path) -> None:
    """Raises UserError if KEY=PATH is not an existing folder that can be written to."""
    if not path.is_dir():
        raise UserError(f"{key}={path} is not an existing folder; create it, or give another")
    _check_writable(key, path, path)


def set_aside(folder: Path) -> Path:
    """Renames a folder to NAME.misaligned, or NAME.misaligned2 and so on. Returns its new path."""
    number = 1
    while (place := folder.with_name(f"{folder.name}.misaligned{number if number > 1 else ''}")).exists():
        number += 1
    return folder.rename(place)


def missing_folders(folder: Path) -> list[Path]:
    """A folder and its parents, as far as they do not exist."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_new(places: list[Path]) -> None:
    """Removes folders from `missing_folders` that were created since: the lowest with its content, others if empty."""
    if places:
        shutil.rmtree(places[0], ignore_errors=True)
    for place in places[1:]:
        with contextlib.suppress(OSError):  # it contains something else
            place.rmdir()


def _check_writable(key: str, path: Path, folder: Path) -> None:
    """Tests by creating a file without a name. Permissions alone would not show mounts, quotas and full disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be written ({folder}: {error.strerror}); give a path where you may write"
        ) from error


@contextlib.contextmanager
def lock_folder(folder: Path, waiting: str) -> Iterator[None]:
    """Creates the folder and holds an exclusive lock on it. If another process removes the folder in between, it is
    created again. `waiting`: printed if another process has the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(waiting, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_same_file(lock.fileno(), folder / ".lock"):
                yield
                return


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def raise_full_disk_as_oserror(place: Path) -> Iterator[None]:
    """Converts errors of libraries (LMDB, safetensors) on a full disk into an OSError with ENOSPC that names the
    path."""
    full = os.strerror(errno.ENOSPC)
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if full in str(error):
            raise OSError(errno.ENOSPC, full, str(place)) from error
        raise


def clear_leftovers(folder: Path) -> None:
    """Removes temporary files of a killed `write_whole` from `folder`. To be called only by the folder's only
    writer."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_file():
            leftover.unlink()
