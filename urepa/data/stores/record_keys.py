"""Keys of records: a sample's id, with "/flip" behind it where the record of its mirror image is asked for.

Keys on disk may have a suffix behind the sample id, which the manifest has as `key_suffix`; `Store` adds it. Token
stores of earlier versions, and those in the layout that `stage=adopt` takes in, have "_mid" and do not say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from urepa.core.files import read_json
from urepa.data.stores.lmdb_pages import HIDDEN, has_records, records

FLIP = "/flip"
SUFFIX = "key_suffix"  # in a manifest
UNSAID = "_mid"  # of tokens, where the manifest has none


def record_key(sample_id: str, mirrored: bool) -> str:
    """The key of a sample's record, or of its mirror image's."""
    return f"{sample_id}{FLIP}" if mirrored else sample_id


def is_mirrored(key: str) -> bool:
    """Is it a mirror image's?"""
    return key.endswith(FLIP)


def sample_id_of(key: str) -> str:
    """The sample whose record, or mirror image's record, has this key."""
    return key.removesuffix(FLIP)


def key_suffix(manifest: Mapping[str, Any]) -> str:
    """What a store with this manifest has behind the sample ids in its keys on disk."""
    return str(manifest.get(SUFFIX, UNSAID if manifest.get("kind") == "tokens" else ""))


def token_key_facts(folder: Path) -> dict[str, str]:
    """What the manifest of a token store is to say of its keys: in a new one they are sample ids; one that was begun
    goes on as it is, and one that has records alone is what all their keys say."""
    for name in ("manifest.json", "begun.json"):
        if (file := folder / name).exists():
            return {key: value for key, value in read_json(file).items() if key == SUFFIX}
    if not has_records(folder):
        return {SUFFIX: ""}
    keys = (key for key, _, _ in records(folder) if not key.startswith(HIDDEN))
    return {} if all(key.endswith(UNSAID) for key in keys) else {SUFFIX: ""}
