"""A few of the kills of kill_training.py, which makes as many as one likes."""

from __future__ import annotations

import random
from pathlib import Path

from kill_training import endure
from workspace import Workspace


def test_a_few_kills(work: Workspace, reference: Workspace, empty_db: Path) -> None:
    """The kinds are drawn with a seed, but which of them still find a running process depends on its speed: one that
    comes too late is not counted, and another is drawn."""
    assert endure(work, reference, empty_db, 6, random.Random(0)).total() == 6
