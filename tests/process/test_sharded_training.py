"""trainer.sharding=fsdp2 with gloo processes: losses and gradients are those of one process to fp32 rounding, and the
checkpoints are those of one process too."""

from __future__ import annotations

import json
import shutil

import pytest
from test_parallel_training import LONGER, assert_same_gradients, assert_same_losses, dumped
from workspace import EVALUATED, TINY, TINY_SIT, Workspace, last_checkpoint, one_line_error, steps, without_timings

SHARDED = "trainer.sharding=fsdp2"
# adapters on frozen weights, in several micro-batches, evaluated during training and at its end
ADAPTERS = (
    "lora=all_attention",
    "optimizer=adamw_lora",
    "loss.level=token",
    "trainer.accumulation=2",
    *EVALUATED,
    "trainer.evaluate_every=10",
)


@pytest.fixture(scope="module")
def alone(make_workspace) -> Workspace:  # type: ignore[no-untyped-def]
    here: Workspace = make_workspace()
    here.train(*LONGER, arranged=("--dump", str(here.folder / "dump")))
    return here


def test_four_stopped_and_resumed_by_two_and_by_one(work: Workspace, alone: Workspace, make_workspace) -> None:  # type: ignore[no-untyped-def]
    """One rank gets the signal. The checkpoint has whole tensors, which any number of processes opens."""
    done = work.train(*LONGER, SHARDED, arranged=("--send", "SIGTERM:after_backward:11:3"), ranks=4, code=None)
    assert "stopped at step 11" in done.stdout, done.stderr
    assert steps(work.run)[-1] == 11, done.stderr
    other = make_workspace()
    shutil.copytree(work.folder / "outputs", other.folder / "outputs")
    for here, own, ranks in ((work, (SHARDED,), 2), (other, (), 1)):
        dump = here.folder / "dump"
        done = here.train(*LONGER, *own, arranged=("--dump", str(dump)), ranks=ranks)
        assert "at step 11" in done.stdout
        assert_same_losses(here.run, alone.run)
        assert_same_gradients(dumped(dump, "gradients"), dumped(alone.folder / "dump", "gradients"), first=11)
    for part in ("weights", "ema", "optimizer"):
        ours, theirs = (last_checkpoint(run) / f"{part}.safetensors" for run in (work.run, alone.run))
        assert ours.stat().st_size == theirs.stat().st_size, part
    held = [dumped(work.folder / "dump", "held", rank) for rank in (0, 1)]
    for name, tensor in dumped(alone.folder / "dump", "parameters").items():
        assert sum(int(one[name]) for one in held) == tensor.numel(), name
    most = max(sum(int(n) for n in one.values()) for one in held)
    assert most < 0.52 * sum(sum(int(n) for n in one.values()) for one in held), "each holds half"


def test_adapters_on_sharded_frozen_weights(work: Workspace, make_workspace) -> None:  # type: ignore[no-untyped-def]
    """Evaluations on rank 0 see the whole averaged weights."""
    single = make_workspace()
    single.train(*LONGER, *ADAPTERS)
    work.train(*LONGER, *ADAPTERS, SHARDED, ranks=2)
    assert_same_losses(work.run, single.run)
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (work.run, single.run))
    assert ours["parameters"] == theirs["parameters"]
    assert any(key.startswith("final/") for key in theirs["metrics"])


@pytest.mark.parametrize(
    ("tiny", "own"),
    [
        (TINY_SIT, ()),
        (TINY, ("lora=all_attention", "optimizer=adamw_lora", "trainer.precision=bf16", "trainer.frozen=bf16")),
    ],
    ids=["transformer", "bf16"],
)
def test_other_models(tiny: tuple[str, ...], own: tuple[str, ...], make_workspace) -> None:  # type: ignore[no-untyped-def]
    """A tap before blocks whose gradients are measured too; and frozen weights of another type than the trained."""
    single, sharded = make_workspace(tiny), make_workspace(tiny)
    single.train("tracking=none", *own)
    sharded.train("tracking=none", *own, SHARDED, ranks=2)
    if not own:
        assert_same_losses(sharded.run, single.run)
        return
    ours, theirs = (without_timings(run)[-1] for run in (sharded.run, single.run))
    assert ours.keys() == theirs.keys()
    for key in ("train/total", "grad_norm", "val/total", "val/token"):
        assert ours[key] == pytest.approx(theirs[key], rel=2e-2), key


def test_one_process_has_nothing_to_divide(work: Workspace) -> None:
    said = one_line_error(work.train(*LONGER, SHARDED, code=1))
    assert said.startswith("trainer.sharding=fsdp2 divides the weights among several processes, and this run has one")
