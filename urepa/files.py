"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any
from uuid import uuid4

from urepa.errors import UserError

# What torch.load raises for a damaged file or another program's, besides UnpicklingError for more than tensors
DAMAGED = (RuntimeError, EOFError, LookupError, ValueError, AssertionError, struct.error)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file through a temporary one: temp, fsync, rename."""
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
    """What a JSON file holds, an object unless another `kind` is given. UserError where it is damaged or another
    program's; OSError where it cannot be read."""
    try:
        value = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, or no JSON ({error}); put it back from a copy") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not what urepa writes there; put it back")
    return value


def clear_leftovers(folder: Path) -> None:
    """Removes what a killed `write_whole` left in `folder` itself. To be called by the folder's only writer."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_file():
            leftover.unlink()
