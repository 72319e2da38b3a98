"""Latents and teacher grids that change from step to step: two processes equal one, and compiled equals eager."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from forks import environment, forks, run
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).parent / "changing_shapes.py")
Gradients = dict[str, torch.Tensor]


def alone(kind: str, folder: Path, *flags: str) -> Gradients:
    file = folder / f"alone{''.join(flags)}"
    done = run([SCRIPT, kind, str(file), *flags], folder)
    assert done.returncode == 0, done.stderr
    return load_file(file)


def by_two(kind: str, folder: Path) -> Gradients:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    shared["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    file = folder / "two"
    errors = [folder / f"stderr_{rank}" for rank in range(2)]
    ranks = [
        forks().start([SCRIPT, kind, str(file)], folder, shared | {"RANK": str(rank)}, folder / f"stdout_{rank}", err)
        for rank, err in enumerate(errors)
    ]
    codes = [rank.wait(120) for rank in ranks]
    assert codes == [0, 0], "\n".join(err.read_text() for err in errors)
    return load_file(file)


def assert_alike(ours: Gradients, theirs: Gradients, least: float) -> None:
    """Compares each parameter's gradient, relative to the size of the step's whole gradient."""
    assert ours.keys() == theirs.keys()
    for step in "012":
        own = sorted(key for key in theirs if key.startswith(f"{step}/"))
        whole = torch.cat([theirs[key].flatten() for key in own]).norm()
        assert whole > 0
        worst = max(float((ours[key] - theirs[key]).norm() / whole) for key in own)
        assert worst < least, (step, worst)
        assert any(key.startswith(f"{step}/heads.") and theirs[key].abs().max() > 0 for key in own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sit", "unet"])
def test_two_processes_equal_one(kind: str, tmp_path: Path) -> None:
    assert_alike(by_two(kind, tmp_path), alone(kind, tmp_path), 1e-6)


@pytest.mark.slow
def test_compiled_blocks_support_changing_shapes(tmp_path: Path) -> None:
    """Compiled kernels round differently; positions or shapes of another step would cause differences as large as the
    gradient."""
    assert_alike(alone("sit", tmp_path, "--compile"), alone("sit", tmp_path), 5e-3)
