"""A small FlexTok in real processes: killed, it ends like an uninterrupted one; two processes train like one; an export
of it holds its EMA weights and is read as `backbone.weights`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from workspace import (
    Workspace,
    assert_same_checkpoint,
    assert_same_end,
    ended,
    last_checkpoint,
    steps,
    without_timings,
)

STEPS = 10


@pytest.fixture(scope="module")
def overrides(small_flextok: list[str]) -> list[str]:
    """Overrides of a run on caches that exist. The codes' path is open after the first update."""
    trainer = [f"trainer.max_steps={STEPS}", "trainer.log_every=1", "trainer.validate_every=5"]
    trainer += ["trainer.checkpoint_every=3", "trainer.threads=1", "optimizer.warmup_ratio=0"]
    own = [o for o in small_flextok if not o.startswith("trainer.max_steps")]
    return [*own, *trainer]


@pytest.fixture(scope="module")
def alone(make_workspace: Callable[[], Workspace], overrides: list[str]) -> Workspace:
    here = make_workspace()
    here.train(*overrides, arranged=("--dump", str(here.folder / "dump")), bare=True)
    return here


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    work: Workspace, alone: Workspace, overrides: list[str]
) -> None:
    work.train(*overrides, arranged=("--kill", "after_backward:8"), code=-signal.SIGKILL, bare=True)
    assert steps(work.run)[-1] == 6
    work.train(*overrides, bare=True)
    assert_same_end(work.run, alone.run)
    assert_same_checkpoint(work.run, alone.run, 9)


def test_two_processes_equal_one(work: Workspace, alone: Workspace, overrides: list[str]) -> None:
    dump = work.folder / "dump"
    work.train(*overrides, arranged=("--dump", str(dump)), ranks=2, bare=True)
    assert json.loads((work.run / "summary.json").read_text())["processes"] == 2
    for ours, theirs in zip(without_timings(work.run), without_timings(alone.run), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), theirs["step"]
    both = [load_file(folder / "gradients_0.safetensors") for folder in (dump, alone.folder / "dump")]
    assert both[0].keys() == both[1].keys()
    assert any("backbone.encoder.registers" in name and value.any() for name, value in both[1].items())
    for step in range(STEPS):
        own = [name for name in both[0] if name.startswith(f"{step:04d}/")]
        here, there = (torch.cat([one[name].flatten() for name in own]) for one in both)
        assert (here - there).norm() / there.norm() < 1e-3, step


def test_an_export_holds_the_averages_and_is_read_again(alone: Workspace, overrides: list[str]) -> None:
    out = alone.folder / "export"
    done = ended(["-m", "urepa.export", f"run={alone.run}", f"out={out}"], alone.folder)
    assert done.returncode == 0, done.stderr
    averages = load_file(last_checkpoint(alone.run) / "ema.safetensors")
    exported = load_file(out / "model.safetensors")
    names = {name.removeprefix("backbone."): value for name, value in averages.items() if name.startswith("backbone.")}
    assert exported.keys() == names.keys()
    assert all(torch.equal(exported[name], value) for name, value in names.items())
    again = [o for o in overrides if not o.startswith("optimizer.")]
    weights = f"backbone.weights={out / 'model.safetensors'}"
    done = ended(["-m", "urepa.one_batch", *again, weights, "optimizer=adamw_flextok"], alone.folder)
    assert done.returncode == 0, done.stderr
    done = ended(["-m", "urepa.one_batch", *again, weights, "backbone.decoder_width=32"], alone.folder)
    (line,) = done.stderr.splitlines()
    assert "does not fit this backbone" in line
