"""Node-local copies of caches: data.stage_to=/local copies them once a node, with checksums."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from urepa import progress
from urepa.errors import UserError
from urepa.files import write_whole

BLOCK = 16 * 2**20


def stage(paths: list[Path], root: Path, to: Path) -> Path:
    """Copies `paths` (files or folders below `root`) to the same places below `to`/<root's name>; returns that
    folder. One process of a node copies while the others wait. What is there and unchanged is kept; a copy
    whose digest differs from its source's is a UserError."""
    place = to / f"{root.resolve().name}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = place / "staged.json"
        known = json.loads(record.read_text()) if record.exists() else {}
        files = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob("*"))) if f.is_file()]
        files = [f for f in files if not f.name.startswith(".")]
        missing = [f for f in files if known.get(str(f.relative_to(root))) != _stamp(f)]
        needed = sum(f.stat().st_size for f in missing)
        if needed > shutil.disk_usage(place).free:
            raise UserError(f"data.stage_to={to} has too little room: {needed / 1e9:.1f} GB are needed")
        with progress.bar(total=needed, desc="staging", unit="B", unit_scale=True, disable=not missing) as bar:
            for file in missing:
                name = str(file.relative_to(root))
                _copy(file, place / name, bar)
                known[name] = _stamp(file)
                write_whole(record, json.dumps(known, indent=1))
    return place


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _copy(source: Path, target: Path, bar: tqdm) -> None:
    """Copies a file whole or not at all and reads the copy back."""
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
            raise UserError(f"{target} differs from {source} after copying: is the local disk sound?")
    os.replace(temporary, target)
