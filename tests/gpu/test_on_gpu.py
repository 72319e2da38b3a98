"""What only a GPU can show: a step never waits for the device, and says what a CPU says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

# conftest.py hides GPUs from the other tests, so these run in processes of their own
SEES_GPUS = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
STEPS = """
import sys
from pathlib import Path
import hydra, torch
from urepa import assembly
from urepa.doors import CONF, prepare
from urepa.runs import plain
from urepa.session import accelerate_for
from urepa.tracking import NoShipper

prepare()
with hydra.initialize_config_dir(CONF, version_base="1.3"):
    config = plain(hydra.compose("train", ["tracking=none", "trainer.batch_size=8", *sys.argv[2:]]))
here = Path(sys.argv[1])
accelerator = accelerate_for(config["trainer"])
shipper = NoShipper(folder=here, name="", params={}, run_tags={})
trainer, _ = assembly.build(config, here, accelerator, shipper)
totals = []
for step, batches in enumerate(trainer.reader.stream(0, 8)):
    torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")
    update = trainer.update(step, batches, with_tap_gradients=step % 4 == 0)
    torch.cuda.set_sync_debug_mode("default")
    totals.append(update.terms.total.item())
print("totals", *totals)
"""


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
        [sys.executable, "-c", STEPS, str(folder), f"data.root={folder}", *overrides],
        env=SEES_GPUS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(value) for value in done.stdout.splitlines()[-1].split()[1:]]


def test_a_step_does_not_wait_for_the_device_and_bf16_follows_fp32(tmp_path: Path) -> None:
    exact = totals(tmp_path)
    half = totals(tmp_path, "trainer.precision=bf16", "trainer.frozen=bf16", "trainer.channels_last=true")
    assert len(exact) == 8
    assert half == pytest.approx(exact, rel=0.03)
