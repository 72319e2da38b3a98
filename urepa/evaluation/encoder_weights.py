"""Identifies the weights that an evaluation's settings name: a path says where they are, not what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.core.hashing import file_sha256
from urepa.evaluation.classifier_file import read_metadata

FILE = "weights_file"  # next to `weights`, in a finished run's summary


def with_digests(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with a `weights_file` next to each `weights` that names a file: its `sha256`, and the `accuracy` from
    the file of a classifier."""
    found = {key: with_digests(value) if isinstance(value, dict) else value for key, value in settings.items()}
    file = Path(settings["weights"]) if isinstance(settings.get("weights"), str) else None
    if file is not None and file.is_file():
        stated = read_metadata(file).get("accuracy") if file.suffix == ".safetensors" else None
        found[FILE] = {"sha256": file_sha256(file)} | ({} if stated is None else {"accuracy": stated})
    return found
