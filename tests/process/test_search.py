"""`hydra/sweeper=optuna` over real runs: killed in the middle, it goes on with the trial that was begun."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from workspace import Workspace, assert_tracked_once, one_line_error, steps, wait_for

optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")

GIVEN = ("hydra.sweeper.metric=val/diffusion", "hydra.sweeper.direction=minimize")
SEARCH = ("hydra/sweeper=optuna", "loss.lambda_max=interval(0,1)", "trainer.checkpoint_every=2")


def lambda_of(run: Path) -> float:
    overrides = dict(o.split("=", 1) for o in json.loads((run / "summary.json").read_text())["overrides"])
    return float(overrides["loss.lambda_max"])


def test_a_search_that_is_killed_loses_and_doubles_no_trial(work: Workspace) -> None:
    """With more trials in the second command than in the first."""
    begun = work.start(*SEARCH, *GIVEN, "hydra.sweeper.trials=3", "-m")
    wait_for(lambda: len(work.runs()) == 2 and any(len(steps(run)) == 1 for run in work.runs()), begun)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    before = work.runs()
    done = work.train(*SEARCH, *GIVEN, "hydra.sweeper.trials=3", "-m")
    assert "resuming" in done.stdout, "the trial that was begun goes on"
    assert set(before) < set(work.runs())
    done = work.train(*SEARCH, *GIVEN, "hydra.sweeper.trials=4", "-m")
    storage = f"sqlite:///{work.folder}/outputs/search.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    runs = {lambda_of(run): run for run in work.runs()}
    assert len(work.runs()) == len(runs) == 4
    for trial in trials:
        run = runs[trial.params["loss.lambda_max"]]
        assert trial.value == json.loads((run / "summary.json").read_text())["metrics"]["val/diffusion"]
    assert len({assert_tracked_once(work.db, run) for run in runs.values()}) == 4
    best = min(trials, key=lambda trial: trial.value)
    assert f"best of 4: trial {best.number}, val/diffusion={best.value:.6g}" in done.stdout


def test_a_search_without_its_metric_ends_before_a_run(work: Workspace) -> None:
    said = one_line_error(work.train(*SEARCH, "hydra.sweeper.trials=3", "-m", code=1))
    assert "say what is searched: hydra.sweeper.metric=KEY" in said
    assert not work.runs()
