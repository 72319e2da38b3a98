"""The command `python -m urepa.plan` in real processes: tables, sweeps, files, measurements, mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import pytest

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WORLD_SIZE", "RANK")} | {
    "HF_HUB_OFFLINE": "1"
}  # else a hub that is away is asked for 40 s


def run(folder: Path, *arguments: str, python: tuple[str, ...] | None = None) -> subprocess.CompletedProcess[str]:
    """`python`: the arguments of Python itself, in a process that has imported nothing, also not the code to reach the
    hub."""
    if python is None:
        return forks.run(["-m", "urepa.plan", *arguments], folder, env=ENVIRONMENT)
    command = [sys.executable, *python, "-m", "urepa.plan", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def columns(text: str, name: str) -> list[str]:
    """The first row that begins with this name."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


@pytest.mark.slow
def test_a_track_is_planned_before_anything_is_built(tmp_path: Path) -> None:
    done = run(tmp_path, "data=track_b", "+ablation=lambda_0", "out=plan.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert os.listdir(tmp_path) == ["plan.json"]
    assert columns(done.stdout, "tokens")[1:3] == ["1,331,167", "524,288"]
    assert "1,281,167 train, 50,000 val" in done.stdout
    assert columns(done.stdout, "expected")[1] == "pending"
    written = json.loads((tmp_path / "plan.json").read_text())
    (planned,) = written["runs"]
    assert planned["device"]["name"] == "H200"
    assert planned["gpu_hours_expected"] is None
    assert written["total"] == {"gpu_hours_floor": planned["gpu_hours_floor"], "gpu_hours_expected": None}
    gflop = sum(sum(direction.values()) for direction in planned["flops_per_step"].values()) / 24 / 1e9
    assert float(columns(done.stdout, "sum")[1].replace(",", "")) == sum(
        part["all"] for part in planned["parameters"].values()
    )
    row = [line.split() for line in done.stdout.splitlines() if line.startswith("  sum")][1]
    assert float(row[1]) + float(row[2]) == pytest.approx(gflop, abs=2e-3)


@pytest.mark.slow
def test_a_sweep_is_a_line_for_each_run_and_their_total(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "trainer.max_steps=1000000,2000000", "seed=0,1", "out=plan.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert os.listdir(tmp_path) == ["plan.json"]
    head, *lines, total = [line.split() for line in done.stdout.splitlines()]
    assert head[0] == "steps"
    assert [line[-2:] for line in lines] == [
        [f"trainer.max_steps={steps}", f"seed={seed}"] for steps in (1000000, 2000000) for seed in (0, 1)
    ]
    written = json.loads((tmp_path / "plan.json").read_text())
    each = [planned["gpu_hours_floor"] for planned in written["runs"]]
    assert written["total"]["gpu_hours_floor"] == pytest.approx(sum(each))
    assert each[2] == pytest.approx(2 * each[0], rel=1e-6)
    assert total == ["total", f"{sum(each):.2f}", "pending", "4", "runs"]


@pytest.mark.slow
def test_a_plan_is_checked_against_a_measurement(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "path": path,
            "step_s": seconds,
            "images_per_s": 48 / seconds,
            "tflops_per_s": 0.0406 / seconds,
            "peak_memory_bytes": 2**30,
            "data_wait_share": 0.1,
            "saved_bytes_per_sample": 3.2 * 2**20,
            "device": "cpu",
            "batch_size": 48,
        }
        for path, seconds in (("urepa", 0.2), ("documented", 0.4))
    ]
    (tmp_path / "bench.json").write_text(json.dumps(rows))
    measured = ("backbone.block_out_channels=[32,64,128]", "trainer.batch_size=48")
    done = run(tmp_path, "device=cpu", *measured, "measured=bench.json", "out=plan.json")
    assert done.returncode == 0, done.stderr
    (planned,) = json.loads((tmp_path / "plan.json").read_text())["runs"]
    assert planned["gpu_hours_floor"] is None
    assert planned["gpu_hours_expected"] == pytest.approx(planned["run_flops"] / (0.203e12) / 3600)
    assert columns(done.stdout, "floor")[1] == "pending"
    ours, theirs = (columns(done.stdout, path) for path in ("urepa", "documented"))
    assert (ours[2], theirs[2]) == ("0.2000", "0.4000")
    assert float(ours[-1]) == pytest.approx(3.2 * 2**20 / planned["saved_bytes_per_sample"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.stepps=3"], "did you mean 'trainer.max_steps'?"),
        (["device=h100"], "device has no option 'h100'; choose one of: cpu, h200"),
        (["trainer.batch_size=0"], "give 1 or more"),
    ],
)
def test_a_mistake_is_one_line_without_loading_torch(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(tmp_path, *arguments, python=("-X", "importtime"))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert not re.search(r"^import time:.*\| +torch$", done.stderr, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_mistake_that_only_built_parts_find(tmp_path: Path) -> None:
    done = run(tmp_path, "measured=nowhere.json")
    assert done.returncode == 1
    assert done.stderr.startswith("error: measured=nowhere.json: there is no such file")
    assert len(done.stderr.splitlines()) == 1
    again = run(tmp_path, "-m", "data=cifar10", "data.images=someone/pictures", "data.limit=null,100", python=())
    assert again.returncode == 1
    assert "error: the number of images in someone/pictures is not known" in again.stderr
