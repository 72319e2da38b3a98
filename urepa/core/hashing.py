"""Stable hashes of values, and the digest of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest64(*parts: object) -> int:
    """A stable 64-bit number for `parts` (Python's own hash differs between processes)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
