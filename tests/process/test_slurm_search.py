"""`hydra/sweeper=optuna` with trials on a real SLURM: the search and one of its trials are killed in the middle, and no
trial is lost or made twice. UREPA_SEARCH_TRIALS=20 makes a longer search."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from cluster import Cluster
from test_slurm_sweep import Sweep, pid_of
from workspace import Workspace, assert_tracked_once, steps, wait_for

from urepa.cluster.slurm_job import Book

optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")
pytestmark = pytest.mark.long(waits=True)

TRIALS, AT_ONCE = int(os.environ.get("UREPA_SEARCH_TRIALS", "6")), 3
SEARCH = (
    *("hydra/sweeper=optuna", "hydra.sweeper.metric=val/diffusion", "hydra.sweeper.direction=minimize"),
    *(f"hydra.sweeper.trials={TRIALS}", f"hydra.sweeper.at_once={AT_ONCE}"),
    *("loss.lambda_max=interval(0,1)", "lora.rank=2,4", "lora=all_attention", "optimizer=adamw_lora"),
    *("trainer.max_steps=24", "trainer.validate_every=24", "trainer.checkpoint_every=3"),
)


def searched(run: Path) -> tuple[float, int]:
    """λ and rank of a run."""
    overrides = dict(o.split("=", 1) for o in json.loads((run / "summary.json").read_text())["overrides"])
    return float(overrides["loss.lambda_max"]), int(overrides["lora.rank"])


def stop_one(work: Workspace) -> list[int]:
    """Stops the process of a run that has a checkpoint and is not finished, if there is one."""
    for run in work.runs():
        if steps(run) and not (run / "summary.json").exists():
            pid = pid_of(run)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                if not (run / "summary.json").exists():
                    return [pid]
                os.kill(pid, signal.SIGCONT)
    return []


def test_a_search_on_slurm_loses_and_doubles_no_trial(slurm: Cluster, work: Workspace) -> None:
    begun = Sweep(work, slurm, *SEARCH)
    half = TRIALS // 2
    stopped: list[int] = []
    for count in range(1, half + 1):
        wait_for(lambda: len(work.runs()) >= count, begun.process, f"trial {count}")  # noqa: B023  called at once

    def one_is_stopped() -> bool:
        stopped.extend(stop_one(work) if len(work.runs()) > half else [])
        return bool(stopped)

    wait_for(one_is_stopped, begun.process, "a trial of the second half")
    begun.process.send_signal(signal.SIGKILL)
    begun.end()
    os.kill(stopped[0], signal.SIGKILL)
    before = set(work.runs())
    assert half < len(before) < TRIALS + 1
    code, out, err = Sweep(work, slurm, *SEARCH).end()
    assert code == 0, (out, err)
    assert "runs are in SLURM's queue from an earlier start" in out
    storage = f"sqlite:///{work.folder}/outputs/search.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * TRIALS
    runs = {searched(run): run for run in work.runs()}
    assert before < set(runs.values()) or len(before) == TRIALS
    assert len(work.runs()) == len(runs) == TRIALS
    for trial in trials:
        run = runs[trial.params["loss.lambda_max"], int(trial.params["lora.rank"])]
        assert trial.value == json.loads((run / "summary.json").read_text())["metrics"]["val/diffusion"]
    entries = Book(work.folder / "outputs/.jobs").entries()
    assert len(entries) == len({entry.job.run for entry in entries}) == TRIALS, "each is submitted once"
    restarts = [int(slurm.details(entry.id)["Restarts"]) for entry in entries]
    assert sum(restarts) == 1, "the killed trial alone began again"
    assert len({assert_tracked_once(work.db, run) for run in runs.values()}) == TRIALS
    best = min(trials, key=lambda trial: trial.value)
    assert f"best of {TRIALS}: trial {best.number}, val/diffusion={best.value:.6g}" in out
