"""Evaluations of many samples keep vectors and blocks in memory: neither all tokens nor a similarity matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

FEW, MANY = 2_000, 5_500  # the first fills the blocks
# MiB that the second may need more than the first: with 3,500 more, a matrix of similarities would be 100 MiB, the
# tokens of a tap and its head 55 MiB; with neither it is 43 MiB for alignment and 9 for knn.
MOST = {"alignment": 70.0, "knn": 40.0}
# glibc gives back what is freed at once; else the peak is also of what it keeps, and two runs differ by 150 MiB
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
def test_memory_does_not_grow_with_the_samples(name: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, str(script), name, str(tmp_path), str(FEW), str(MANY)]
    done = subprocess.run(command, env=os.environ | AT_ONCE, capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert many - few < MOST[name]
