"""Two gloo processes train like one with the same global batch: losses and gradients agree to fp32 rounding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from workspace import Workspace, last_checkpoint, one_line_error, steps, without_timings

from urepa.core import random_draws
from urepa.data.lists.samples import read_split

STEPS = 20
LONGER = (f"trainer.max_steps={STEPS}", "trainer.log_every=1", "trainer.checkpoint_every=10", "tracking=none")


def dumped(folder: Path, what: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{what}_{rank}.safetensors")


def assert_same_losses(run: Path, reference: Path) -> None:
    """Every row: the same keys, and values within the fp32 rounding of 20 updates."""
    ours, theirs = without_timings(run), without_timings(reference)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in b:
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=2e-6), (b["step"], key)


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], first: int = 0) -> None:
    """Step by step: each parameter's gradient, relative to the size of the step's whole gradient."""
    names = {k for k in theirs if int(k[:4]) >= first}
    assert ours.keys() == names
    for step in range(first, STEPS):
        own = sorted(k for k in names if k.startswith(f"{step:04d}/"))
        whole = torch.cat([theirs[k].flatten() for k in own]).norm()
        worst = max(float((ours[k] - theirs[k]).norm() / whole) for k in own)
        assert worst < 1e-5, (step, worst)


@pytest.fixture(scope="module")
def alone(make_workspace) -> Workspace:  # type: ignore[no-untyped-def]
    here: Workspace = make_workspace()
    here.train(*LONGER, arranged=("--dump", str(here.folder / "dump")))
    return here


def test_two_processes_equal_one(work: Workspace, alone: Workspace) -> None:
    dump = work.folder / "dump"
    done = work.train(*LONGER, arranged=("--dump", str(dump)), ranks=2, fresh=True)
    assert done.stdout.count("folder   ") == 1, "rank 0 alone reports"
    assert_same_losses(work.run, alone.run)
    assert_same_gradients(dumped(dump, "gradients"), dumped(alone.folder / "dump", "gradients"))
    for what in ("gradients", "parameters"):
        a, b = dumped(dump, what, 0), dumped(dump, what, 1)
        assert all(torch.equal(a[k], b[k]) for k in a), f"the ranks' {what} differ"
    assert json.loads((work.run / "summary.json").read_text())["processes"] == 2


def test_runs_are_stopped_and_resumed_by_two_processes_and_by_one(
    work: Workspace, alone: Workspace, make_workspace
) -> None:  # type: ignore[no-untyped-def]
    """One rank gets the signal; both stop after the same step."""
    done = work.train(*LONGER, arranged=("--send", "SIGTERM:after_backward:11:1"), ranks=2, code=None)
    assert done.returncode != 0
    assert "stopped at step 11" in done.stdout, done.stderr
    assert steps(work.run)[-1] == 11, done.stderr
    other = make_workspace()
    shutil.copytree(work.folder / "outputs", other.folder / "outputs")
    for here, ranks in ((work, 2), (other, 1)):
        dump = here.folder / "dump"
        done = here.train(*LONGER, arranged=("--dump", str(dump)), ranks=ranks)
        assert "at step 11" in done.stdout
        assert_same_losses(here.run, alone.run)
        assert_same_gradients(dumped(dump, "gradients"), dumped(alone.folder / "dump", "gradients"), first=11)


def poison(work: Workspace, ids: list[str]) -> None:
    """Writes NaN latents for these samples into the test's own cache (the store's writer refuses them), which has no
    digests, like one of an earlier version."""
    shutil.copytree(work.cache, work.folder / "cache")
    work.cache = work.folder / "cache"
    (store,) = work.cache.glob("*/latents")
    with lmdb.open(str(store), map_size=2**30) as env, env.begin(write=True) as txn:
        for sample_id in ids:
            value = np.frombuffer(txn.get(sample_id.encode()), dtype=np.float16)
            txn.put(sample_id.encode(), np.full_like(value, np.nan).tobytes())
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["digests_sha256"]
    (store / "manifest.json").write_text(json.dumps(manifest))


def order_of(work: Workspace) -> list[str]:
    """The sample ids in the order of the first epoch of seed 0."""
    (split,) = work.cache.glob("*/train.csv")
    samples = read_split(split)
    return [samples[i].sample_id for i in random_draws.permutation(0, 0, len(samples))]


def test_a_nan_on_one_rank_skips_the_step_on_both(work: Workspace) -> None:
    sample_id = order_of(work)[5 * 8 + 6]  # update 5, position 6 of 8: the second rank's
    poison(work, [sample_id])
    dump = work.folder / "dump"
    done = work.train("tracking=none", arranged=("--dump", str(dump)), ranks=2)
    assert "Traceback" not in done.stderr
    a, b = dumped(dump, "parameters", 0), dumped(dump, "parameters", 1)
    assert all(torch.equal(a[k], b[k]) and bool(a[k].isfinite().all()) for k in a)
    bad = [json.loads(line) for line in (work.run / "bad_samples.jsonl").read_text().splitlines()]
    assert bad == [{"step": 5, "cause": "loss", "sample_ids": [sample_id]}]
    assert without_timings(work.run)[-1]["guard/skipped_steps"] == 1
    adam = load_file(last_checkpoint(work.run) / "optimizer.safetensors")
    assert {float(v) for k, v in adam.items() if k.startswith("step/")} == {11.0}


def test_bad_samples_are_named_once_despite_kills(work: Workspace) -> None:
    """Killed after the checkpoint at step 6 that follows the bad update 4, before a logging step reports it; and again
    after it was reported."""
    order = order_of(work)
    poison(work, [order[4 * 8 + 1], order[10 * 8 + 2]])
    seldom = ("tracking=none", "trainer.log_every=7")
    work.train(*seldom, arranged=("--kill", "after_backward:7"), code=-9)
    work.train(*seldom, arranged=("--kill", "after_file:8"), code=-9)
    work.train(*seldom)
    bad = [json.loads(line) for line in (work.run / "bad_samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["sample_ids"]) for row in bad] == [
        (4, [order[4 * 8 + 1]]),
        (10, [order[10 * 8 + 2]]),
    ]


def test_too_many_bad_steps_in_a_row_stop_the_run(work: Workspace) -> None:
    order = order_of(work)
    poison(work, order[3 * 8 : 8 * 8])  # updates 3 to 7
    said = one_line_error(work.train("tracking=none", "trainer.max_skipped=4", code=1))
    assert "stopped at step 8: 5 updates in a row had a loss or gradient that is not finite" in said
    assert "(trainer.max_skipped=4)" in said
    assert "bad_samples.jsonl" in said
    bad = [json.loads(line) for line in (work.run / "bad_samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in bad] == [3, 4, 5, 6, 7]
    weights = load_file(last_checkpoint(work.run) / "weights.safetensors")
    assert all(bool(v.isfinite().all()) for v in weights.values())
    # more patience goes on and ends
    work.train("tracking=none", "trainer.max_skipped=6")
    assert json.loads((work.run / "summary.json").read_text())["step"] == 12


@pytest.mark.parametrize("late", ["0", "1"])
def test_a_batch_that_the_ranks_do_not_divide_is_refused(late: str, work: Workspace) -> None:
    """torchrun stops both ranks when one has ended: whichever rank fails first, the message is printed once."""
    arranged = ("--late", f"{late}:4")
    done = work.train("trainer.batch_size=9", "tracking=none", arranged=arranged, ranks=2, fresh=True, code=1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: trainer.batch_size=9 does not divide into 2 processes x trainer.accumulation=1; give a multiple of 2"
    ]
