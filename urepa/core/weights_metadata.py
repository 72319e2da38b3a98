"""What a file of weights that urepa trained says of itself, read without torch.

All of it is one JSON text in the file's metadata: safetensors writes several texts in random order, which would change
the file's digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from urepa.core.errors import UserError


def as_metadata(key: str, stated: Mapping[str, object]) -> dict[str, str]:
    """The facts in the form that safetensors stores, under `key`."""
    return {key: json.dumps({name: str(value) for name, value in stated.items()}, sort_keys=True)}


def read_metadata(file: Path, key: str) -> dict[str, str]:
    """The facts that a .safetensors file states under `key`; {} if it states none. Raises UserError if the file is
    damaged."""
    try:
        with safe_open(file, "np") as opened:
            text = (opened.metadata() or {}).get(key, "{}")
        return {name: str(value) for name, value in json.loads(text).items()}
    except (SafetensorError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}); copy it again, or delete it") from error


def differing_facts(there: Mapping[str, str], expected: Mapping[str, object]) -> str:
    """The facts that are not the expected ones, as text; empty if all are."""
    return "; ".join(
        f"{name}: {there.get(name, 'unknown')} there, {value} here"
        for name, value in expected.items()
        if there.get(name) != str(value)
    )
