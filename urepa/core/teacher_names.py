"""Names of teachers, without torch."""

from __future__ import annotations

ALONE = ""  # the name of a single teacher
