"""Evaluations of many samples hold vectors and blocks: neither all tokens nor a similarity matrix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FEW, MANY = 2_000, 16_000  # the first fills the blocks
# Of 16,000: a matrix of similarities would be 980 MiB, the tokens of a tap and its head 250 MiB.
MOST = 180.0  # MiB that the second may need more than the first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alignment", "knn"])
def test_memory_does_not_grow_with_the_samples(name: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, str(script), name, str(tmp_path), str(FEW), str(MANY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert many - few < MOST
