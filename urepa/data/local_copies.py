"""Node-local copies of caches: data.stage_to=/local copies them once per node, with checksums."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole

BLOCK = 16 * 2**20


def stage(paths: list[Path], root: Path, to: Path) -> dict[Path, Path]:
    """Copies `paths` (files or folders) below `to`/<root's name> and returns the copy of each. Paths below `root` keep
    their relative place; paths from elsewhere get a folder per parent. One process of a node copies while the others
    wait. Unchanged, complete copies are not made again. Raises UserError if a copy's digest differs from its
    source's."""
    place = to / _unique_name(root)
    place.mkdir(parents=True, exist_ok=True)
    local = {path: place / _copy_path(path, root) for path in paths}
    with open(place / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = place / "staged.json"
        known = read_json(record) if record.exists() else {}
        files = {
            file: local[path] / file.relative_to(path)
            for path in paths
            for file in ([path] if path.is_file() else sorted(path.rglob("*")))
            if file.is_file() and not file.name.startswith(".")
        }
        missing = {f: copy for f, copy in files.items() if not _is_staged(f, copy, known.get(_name(copy, place)))}
        needed = sum(f.stat().st_size for f in missing)
        if needed > shutil.disk_usage(place).free:
            raise UserError(f"data.stage_to={to} has too little free space: {needed / 1e9:.1f} GB are needed")
        with progress.bar(total=needed, desc="staging", unit="B", unit_scale=True, disable=not missing) as bar:
            for file, copy in missing.items():
                digest = _copy(file, copy, bar)
                known[_name(copy, place)] = {"source": _stamp(file), "copy": _stamp(copy), "sha256": digest}
                write_whole(record, json.dumps(known, indent=1))
    return local


def _unique_name(folder: Path) -> str:
    """The folder's name followed by a hash of its path, to distinguish folders of the same name."""
    return f"{folder.resolve().name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def _copy_path(path: Path, root: Path) -> Path:
    """The relative path of a path's copy; files of one folder are copied to one folder."""
    return path.relative_to(root) if path.is_relative_to(root) else Path(f"from-{_unique_name(path.parent)}", path.name)


def _name(copy: Path, place: Path) -> str:
    return str(copy.relative_to(place))


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _is_staged(source: Path, copy: Path, known: Any) -> bool:
    """Whether the copy is unchanged and was made from the source as it is now. A copy whose time has changed is read
    and its digest compared. `known` is None, or a pair of numbers from a version that did not check its copies."""
    if not isinstance(known, dict) or known["source"] != _stamp(source) or not copy.is_file():
        return False
    if _stamp(copy) == known["copy"]:
        return True
    if copy.stat().st_size != known["copy"][0]:
        return False
    with open(copy, "rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == known["sha256"])


def _copy(source: Path, target: Path, bar: tqdm) -> str:
    """Copies a file, whole or not at all, and reads the copy back. Returns its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(temporary, "wb") as writer:
        while block := reader.read(BLOCK):
            digest.update(block)
            writer.write(block)
            bar.update(len(block))
        writer.flush()
        os.fsync(writer.fileno())
    with open(temporary, "rb") as copy:
        if hashlib.file_digest(copy, "sha256").hexdigest() != digest.hexdigest():
            raise UserError(f"{target} differs from {source} after copying: check the local disk for faults")
    os.replace(temporary, target)
    return digest.hexdigest()
