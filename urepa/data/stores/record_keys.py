"""Keys of records: a sample's id, followed by "/flip" for the record of its mirror image.

Keys on disk may have a suffix after the sample id, which the manifest names as `key_suffix`; `Store` adds it. Token
stores of earlier versions, and those that `stage=adopt` takes in, have the suffix "_mid" without such an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from urepa.core.files import read_json
from urepa.data.stores.lmdb_pages import HIDDEN, has_records, records

FLIP = "/flip"
SUFFIX = "key_suffix"  # in a manifest
UNSAID = "_mid"  # the suffix of token stores whose manifest names none


def record_key(sample_id: str, mirrored: bool) -> str:
    """The key of a sample's record, or of its mirror image's."""
    return f"{sample_id}{FLIP}" if mirrored else sample_id


def is_mirrored(key: str) -> bool:
    """Whether the key belongs to a mirror image."""
    return key.endswith(FLIP)


def sample_id_of(key: str) -> str:
    """The sample whose record, or mirror image's record, has this key."""
    return key.removesuffix(FLIP)


def key_suffix(manifest: Mapping[str, Any]) -> str:
    """The suffix that a store with this manifest adds to the sample ids in its keys on disk."""
    return str(manifest.get(SUFFIX, UNSAID if manifest.get("kind") == "tokens" else ""))


def token_key_facts(folder: Path) -> dict[str, str]:
    """The manifest's entry for the keys of a token store. A new store has sample ids as keys. A store with a manifest
    or a begun.json keeps their entry; a store with records alone gets the entry that fits their keys."""
    for name in ("manifest.json", "begun.json"):
        if (file := folder / name).exists():
            return {key: value for key, value in read_json(file).items() if key == SUFFIX}
    if not has_records(folder):
        return {SUFFIX: ""}
    keys = (key for key, _, _ in records(folder) if not key.startswith(HIDDEN))
    return {} if all(key.endswith(UNSAID) for key in keys) else {SUFFIX: ""}
