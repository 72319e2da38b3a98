"""A run's checkpoint folders by name, without importing torch. `urepa.runs.checkpoint` decides which are valid."""

from __future__ import annotations

import re
from pathlib import Path

from urepa.core.errors import UserError

NAME = re.compile(r"step_(\d{8})")


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of checkpoints, newest first, valid or not."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name))]
    return sorted(found, reverse=True)


def no_checkpoint(run: Path, why: str = "") -> UserError:
    """The error for a folder without a valid checkpoint."""
    return UserError(f"{run} has no valid checkpoint{why}; give the folder of a run that has saved one")
