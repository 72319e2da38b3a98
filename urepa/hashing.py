"""Numbers that belong to texts."""

from __future__ import annotations

import hashlib


def digest64(*parts: object) -> int:
    """A stable 64-bit number for `parts` (Python's own hash differs between processes)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
