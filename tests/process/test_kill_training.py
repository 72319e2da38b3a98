"""A few of the kills of kill_training.py, which makes as many as one likes."""

from __future__ import annotations

import random
from pathlib import Path

from kill_training import endure
from workspace import Workspace


def test_a_few_kills(work: Workspace, reference: Workspace, empty_db: Path) -> None:
    """At a fixed choice of kinds; what a process is doing at that moment differs from run to run all the same."""
    struck = endure(work, reference, empty_db, 6, random.Random(0))
    assert struck.total() == 6
    assert len(struck) >= 5, struck
