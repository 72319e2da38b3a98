"""Generated images are the same files after kill -9 and with any number of processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
from toy_runs import small_sd, write_run
from workspace import HANGS, environment

# kills itself in the middle of its n-th image: written beside its place, not yet in it
KILLED = """
import os, signal, sys
count, replace = int(sys.argv.pop(1)), os.replace
def replacing(source, target):
    global count
    count -= str(target).endswith(".png")
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replacing
from urepa.cli import run_command, prepare
from urepa.generate import main
prepare()
run_command(main, "generate")
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def test_images_of_killed_and_parallel_processes_equal_those_of_one(
    tmp_path: Path, compose: Callable[..., dict[str, Any]]
) -> None:
    run = write_run(tmp_path / "outputs" / "track_a" / "seed42", compose(*small_sd(tmp_path)), 4)
    request = ["classes=[9,2,5]", "n=3", "batch_size=2", "guidance=3", "steps=2", "against=base"]

    def asked(out: Path) -> list[str]:
        return [f"run={run}", f"out={out}", *request]

    def images(out: Path) -> dict[Path, int]:
        return {p.relative_to(out): p.stat().st_mtime_ns for p in out.glob("*/*.png")}

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = forks.run(["-m", "urepa.generate", *asked(whole)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in whole.iterdir()) == ["base", "grid.png", "images", "request.json"]
    names = {Path(v) / f"c000{c}_0000{i}.png" for v in ("base", "images") for c in (2, 5, 9) for i in range(3)}
    assert images(whole).keys() == names

    made: dict[Path, int] = {}
    for at in (4, 8):  # among the base model's images, then among the run's own, and each the second of a batch
        assert forks.run_code(KILLED, [str(at), *asked(parts)], tmp_path).returncode == -signal.SIGKILL
        assert len(list(parts.rglob(".*.tmp"))) == 1
        assert images(parts).keys() < names
        assert len(images(parts)) == len(made) + at - 1
        assert images(parts).items() >= made.items(), "what was there is left alone"
        made = images(parts)
    assert not (parts / "grid.png").exists()
    command = [sys.executable, *TORCHRUN, "-m", "urepa.generate", *asked(parts)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "18 images (8 new)" in done.stdout
    assert done.stdout.count("images (") == 1, "rank 0 alone reports"
    assert images(parts).items() >= made.items()
    every = [p.relative_to(whole) for p in whole.rglob("*.*")]
    assert sorted(every) == sorted(p.relative_to(parts) for p in parts.rglob("*.*"))
    for name in every:
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
