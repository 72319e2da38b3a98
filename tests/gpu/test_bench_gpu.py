"""The GPU benchmark does all its runs on a CPU, and a failure affects only its own run."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_gpu
import pytest
from bench_gpu import FULL, QUARTER, RUNS, SIT_XL, TINY_SIT, TINY_TRACK_A, Run, Worker

from urepa.core.nested_dicts import flatten
from urepa.costs.estimate import Device, plan
from urepa.plan import tables
from urepa.training.checks.combinations import check

pytestmark = pytest.mark.long

CPU = Device("cpu", "cpu", None, None)
NEEDS_A_GPU = "a CPU has no memory of a device to watch and nothing to wait for"
REASONS = {  # of what a CPU cannot show
    "waiting for the device": NEEDS_A_GPU,
    f"memory, {FULL}": NEEDS_A_GPU,
    f"memory, {SIT_XL}": NEEDS_A_GPU,
    f"memory, {QUARTER}": NEEDS_A_GPU,
    "cuDNN attention first": "trainer.attention=cudnn is a kernel for GPUs",
    "flash attention first": "trainer.attention=flash is a kernel for GPUs",
    "memory-efficient attention first": "trainer.attention=efficient is a kernel for GPUs",
    "compiled blocks": "a dry run compiles nothing",
}
LOOPS = {
    "beside the description's loop": ["documented", "urepa"],
    "beside an online teacher": ["online teacher", "urepa"],
    SIT_XL: ["online teacher", "urepa"],
}
BROKEN = Run("broken", ("head.nothing=1",))


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_dry_run_measures_what_a_cpu_can_and_plan_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: Callable[..., dict[str, Any]]
) -> None:
    starts: list[Worker] = []
    start = Worker._start

    def counted(worker: Worker) -> None:
        starts.append(worker)
        start(worker)

    monkeypatch.setattr(Worker, "_start", counted)
    monkeypatch.setattr(bench_gpu, "RUNS", (RUNS[0], BROKEN, *RUNS[1:]))
    bench_gpu.main(tmp_path, dry=True)
    assert len(starts) == 2  # what is refused needs no new process, what failed does
    done: dict[str, dict[str, Any]] = json.loads((tmp_path / "bench.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "bench.md"]

    assert list(done) == [FULL, "broken", *(run.name for run in RUNS[1:])]
    assert "Could not override 'head.nothing'" in done.pop("broken")["why"]
    assert {name for name, result in done.items() if "why" in result} == REASONS.keys()
    assert all(done[name]["why"].startswith(why) for name, why in REASONS.items())
    numbers = [v for v in flatten(done).values() if isinstance(v, float)]
    assert all(math.isfinite(v) for v in numbers)

    steps = {name: r["rows"] for name, r in done.items() if r["kind"] == "steps" and "why" not in r}
    assert {name: [row["path"] for row in rows] for name, rows in steps.items()} == {
        name: LOOPS.get(name, ["urepa"]) for name in steps
    }
    assert all(row["step_s"] > 0 and row["batch_size"] == 4 for rows in steps.values() for row in rows)
    assert len(done["waiting for the device"]["losses"]) == done["waiting for the device"]["steps"]
    reading = done["reading"]
    assert reading["needed_samples_per_s"].keys() == {FULL, QUARTER}
    rate = reading["reader_samples_per_s"] / steps[FULL][0]["images_per_s"]
    assert reading["reader_of_needed"][FULL] == pytest.approx(rate)

    markdown = (tmp_path / "bench.md").read_text()
    assert all(f"not measured: {why}" in markdown for why in REASONS.values())
    is_planned(compose, tmp_path / "bench.json", done)


def is_planned(compose: Callable[..., dict[str, Any]], file: Path, done: dict[str, dict[str, Any]]) -> None:
    """`plan` finds each config's run in the file by FLOPs and switches, and predicts its bytes."""
    for overrides, name in ((TINY_TRACK_A, FULL), (TINY_SIT, SIT_XL)):
        planned = plan(compose(*overrides, root="plan"), CPU, file)
        row = planned.reference
        assert row is not None
        assert row["run"] == name
        assert planned.is_same_step(row)
        assert row["saved_bytes_per_sample"] == pytest.approx(planned.saved_bytes / 4, rel=0.01)
        assert done[f"memory, {name}"]["planned_peak_bytes"] == planned.peak_bytes
        (line,) = [
            line for line in tables(planned)[-1].splitlines() if line.endswith(f"   {name}") and " urepa" in line
        ]
        assert line.split()[-1 - len(name.split())] == "1.000"
    (other,) = [row for row in planned.measured if row["run"] == "frozen weights in fp32"]
    assert not plan(compose(*TINY_TRACK_A, root="plan"), CPU, file).is_same_step(other)
    asked = plan(compose(*TINY_TRACK_A, "trainer.frozen=fp32", root="plan"), CPU, file).reference
    assert asked is not None
    assert asked["run"] == "frozen weights in fp32"


@pytest.mark.slow
def test_the_runs_for_a_gpu_compose_and_fit_together(compose: Callable[..., dict[str, Any]]) -> None:
    """With the sizes that the goals and tables name."""
    for run in RUNS:
        config = compose(*run.overrides(dry=False), root="bench")
        check(config, [])
        assert config["backbone"]["weights"] == "random"
        assert config["trainer"]["precision"] == "bf16"
        sizes = config["trainer"]["batch_size"], config["teacher"]["width"]
        assert sizes == ((128, 1024) if run.model == "track_a" else (256, 768))
        assert set(run.of) <= {other.name for other in RUNS[: RUNS.index(run)]}


def test_a_wait_is_reported_with_its_line_in_this_project() -> None:
    """Not by the line of torch that is last in the traceback."""
    import torch
    from gpu_runs import where

    from urepa.models import speed_switches

    with pytest.raises(RuntimeError) as caught:
        speed_switches.GroupNorm(2, 4)(torch.zeros(1, 6, 3))
    assert caught.traceback[-1].path != Path(speed_switches.__file__)
    assert where(caught.value).startswith(f"{speed_switches.__file__}:")
    assert "F.group_norm(" in where(caught.value)


def test_a_slow_or_killed_run_does_not_affect_the_others(worker: Worker) -> None:
    request = {"kind": "steps", "overrides": [], "rows": {}}
    assert worker.ask(request, 0.01) == {"why": "it took longer than 0 s"}
    assert worker.process is None
    worker._start()
    os.kill(worker.process.pid, signal.SIGKILL)
    assert worker.ask(request, 60) == {"why": "its process ended with exit code -9"}
    assert worker.process is None


def test_runs_without_remaining_time_are_reported_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "BUDGET", 0.0)
    bench_gpu.main(tmp_path)
    done = json.loads((tmp_path / "bench.json").read_text())
    assert list(done) == [run.name for run in RUNS]
    assert {result["why"] for result in done.values()} == {"no time was left of 0 s"}
    assert (tmp_path / "bench.md").read_text().count("not measured: no time was left") == len(RUNS)
