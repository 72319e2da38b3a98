"""What a run with a warm start began from.

FOLDER/warm_start.json: {"folder": the checkpoint as it was given, "step", "file": the file of weights, "sha256": its
digest}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.core.files import read_json

FILE = "warm_start.json"


def read_note(folder: Path) -> dict[str, Any] | None:
    """The record of what a run started from; None if its weights were not copied."""
    file = folder / FILE
    return read_json(file) if file.exists() else None


def in_words(known: dict[str, Any]) -> str:
    """`outputs/a/seed0 at step 12, sha256 0123456789`. Records of earlier versions have no digest."""
    step = "" if known["step"] is None else f" at step {known['step']}"
    return f"{known['folder']}{step}" + (f", sha256 {known['sha256'][:10]}" if "sha256" in known else "")
