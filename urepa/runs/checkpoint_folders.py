"""A run's checkpoints by the names of their folders, without torch. `urepa.runs.checkpoint` says which are valid."""

from __future__ import annotations

import re
from pathlib import Path

from urepa.core.errors import UserError

NAME = re.compile(r"step_(\d{8})")


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders, newest first, valid or not."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name))]
    return sorted(found, reverse=True)


def no_checkpoint(run: Path, why: str = "") -> UserError:
    """What is raised of a folder without a valid checkpoint."""
    return UserError(f"{run} has no valid checkpoint{why}; give the folder of a run that has saved one")
