"""Properties that only a GPU can show: a step never waits for the device, and gives the results of a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

# conftest.py hides GPUs from the other tests, so these run in processes of their own
SEES_GPUS = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
WAITS = Path(__file__).with_name("waits.py")


@pytest.fixture(autouse=True)
def _gpu() -> None:
    seen = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"],
        env=SEES_GPUS,
        capture_output=True,
        text=True,
        check=True,
    )
    if "True" not in seen.stdout:
        pytest.skip("no CUDA device on this machine")


def totals(folder: Path, *overrides: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, str(WAITS), str(folder), f"data.root={folder}", *overrides],
        env=SEES_GPUS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(value) for value in done.stdout.splitlines()[-1].split()[1:]]


@pytest.mark.slow
def test_a_step_does_not_wait_for_the_device_and_bf16_follows_fp32(tmp_path: Path) -> None:
    exact = totals(tmp_path)
    half = totals(tmp_path, "trainer.precision=bf16", "trainer.frozen=bf16", "trainer.channels_last=true")
    assert len(exact) == 8
    assert half == pytest.approx(exact, rel=0.03)
