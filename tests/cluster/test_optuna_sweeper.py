"""A search proposes, runs and stores its trials, and goes on after any interruption with none lost or doubled. The runs
are stand-ins whose metric is a formula; tests/process/test_search.py has real ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from urepa.cluster.optuna_sweeper import OptunaSweeper
from urepa.core.errors import Stopped
from urepa.core.one_line_errors import ReportedError
from urepa.runs.run_folder import folder_name

optuna = pytest.importorskip("optuna", reason="the extra optuna is not installed")

pytestmark = pytest.mark.slow  # sqlite writes every step of every trial

METRIC = "val/diffusion"
SPACE = ["loss.lambda_max=interval(0.1,0.9)", "head.depth=1,2,3", "x=4"]


class Loader:
    """Composes as much as a search needs: the run's folder and length."""

    def load_sweep_config(self, master_config: Any, sweep_overrides: Sequence[str]) -> DictConfig:
        name = folder_name(sorted(sweep_overrides))
        sweep = {"dir": master_config.hydra.sweep.dir, "subdir": f"{name}/seed0"}
        return OmegaConf.create({"hydra": {"sweep": sweep}, "trainer": {"max_steps": 3}})


class Runs:
    """A launcher whose runs end at once. `at`: what happens instead of the run with this index."""

    def __init__(self, folder: Path, at: dict[int, BaseException] | None = None) -> None:
        self.folder, self.at = folder, at or {}
        self.started: list[tuple[str, ...]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        for overrides in job_overrides:
            self.started.append(tuple(overrides))
            if len(self.started) - 1 in self.at:
                raise self.at[len(self.started) - 1]
            run = self.folder / folder_name(sorted(overrides)) / "seed0"
            run.mkdir(parents=True, exist_ok=True)
            values = dict(o.split("=") for o in overrides)
            value = (float(values["loss.lambda_max"]) - 0.4) ** 2 + int(values["head.depth"])
            known = {"experiment": "q", "ablation": "b", "seed": 0, "step": 3, "seconds": {}}
            (run / "summary.json").write_text(json.dumps(known | {"metrics": {METRIC: value, "final/x": "nan"}}))
        return [SimpleNamespace(return_value=None) for _ in job_overrides]


def search(folder: Path, runs: Runs, arguments: list[str] | None = None, **settings: Any) -> None:
    known: dict[str, Any] = {
        **{"metric": METRIC, "direction": "minimize", "algorithm": "tpe", "trials": 14, "at_once": 1, "seed": 0},
        **{"storage": f"sqlite:///{folder}/search.db", "study": None, "params": None},
    }
    sweeper = OptunaSweeper(**known | settings)
    sweeper.hydra_context = SimpleNamespace(config_loader=Loader())
    sweeper.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    sweeper.launcher = runs
    sweeper.sweep(SPACE if arguments is None else arguments)


def trials(folder: Path) -> list[Any]:
    storage = f"sqlite:///{folder}/search.db"
    (name,) = optuna.get_all_study_names(storage)
    return list(optuna.load_study(study_name=name, storage=storage).trials)


def values(folder: Path) -> list[tuple[dict[str, Any], float | None]]:
    return [(t.params, t.value) for t in trials(folder)]


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str], Path]:
    def made(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    return made


def test_proposals_lie_in_the_space_and_improve(folders: Callable[[str], Path]) -> None:
    runs = Runs(folders("a"))
    search(folders("a"), runs)
    found = values(folders("a"))
    assert len(runs.started) == len(set(runs.started)) == len(found) == 14
    assert all("x=4" in overrides for overrides in runs.started)
    assert all(0.1 <= params["loss.lambda_max"] <= 0.9 and params["head.depth"] in "123" for params, _ in found)
    for (params, value), overrides in zip(found, runs.started, strict=True):
        assert overrides == ("x=4", *(f"{key}={params[key]}" for key in ("loss.lambda_max", "head.depth")))
        assert value == (params["loss.lambda_max"] - 0.4) ** 2 + int(params["head.depth"])


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_interrupted_search_ends_as_one_that_was_not(folders: Callable[[str], Path], at_once: int) -> None:
    """Also with more trials than at first."""
    search(folders("whole"), Runs(folders("whole")), at_once=at_once)
    parts, started = folders("parts"), []
    for end, trials_wanted in ((5, 14), (2, 8), (99, 8), (99, 14)):
        runs = Runs(parts, {end: Stopped(130)})
        try:
            search(parts, runs, at_once=at_once, trials=trials_wanted)
        except Stopped:
            assert len(runs.started) == end + 1
        started += runs.started
    if at_once == 1:
        assert values(parts) == values(folders("whole"))
    assert len(values(parts)) == 14
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials(parts))
    again = Counter(started)
    assert set(again) == {("x=4", *(f"{k}={v}" for k, v in t.params.items())) for t in trials(parts)}
    runs = Runs(parts)
    search(parts, runs, at_once=at_once)
    assert not runs.started, "nothing is left"


def test_a_kill_between_two_writes_loses_nothing(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is stored, and the process ends before its values are proposed."""
    search(folders("whole"), Runs(folders("whole")), trials=6)
    with monkeypatch.context() as patch:
        real = optuna.trial.Trial.suggest_categorical

        def dying(self: Any, *arguments: Any) -> Any:
            if self.number == 3:
                raise KeyboardInterrupt
            return real(self, *arguments)

        patch.setattr(optuna.trial.Trial, "suggest_categorical", dying)
        with pytest.raises(SystemExit):
            search(folders("parts"), Runs(folders("parts")), trials=6)
    search(folders("parts"), Runs(folders("parts")), trials=6)
    assert values(folders("parts")) == values(folders("whole"))


@pytest.mark.parametrize("wanted", [None, 4])
def test_a_grid_has_each_point_once(folders: Callable[[str], Path], wanted: int | None) -> None:
    space = ["loss.lambda_max=0.1,0.5", "head.depth=range(1,4)", "x=4"]
    first, second = Runs(folders("a"), {2: Stopped(130)}), Runs(folders("a"))
    with pytest.raises(Stopped):
        search(folders("a"), first, space, algorithm="grid", trials=wanted)
    search(folders("a"), second, space, algorithm="grid", trials=wanted)
    every = [("x=4", f"loss.lambda_max={lam}", f"head.depth={depth}") for lam in (0.1, 0.5) for depth in (1, 2, 3)]
    assert first.started[:2] + second.started == every[: wanted or 6]


def test_a_failed_trial_counts_as_such_and_the_others_run(
    folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(folders("a"), {2: ReportedError("diverged"), 4: RuntimeError("broken")})
    with pytest.raises(ReportedError) as error:
        search(folders("a"), runs, trials=6)
    assert error.value.text.startswith("2 trials failed, and count as such: loss.lambda_max=")
    states = [trial.state.name for trial in trials(folders("a"))]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert "best of 4: trial " in capsys.readouterr().out
    assert len(runs.started) == 6


def test_a_queue_that_does_not_answer_loses_no_trial(folders: Callable[[str], Path]) -> None:
    """The search ends, and the same command goes on with the trial that was begun."""
    with pytest.raises(ReportedError) as error:
        search(folders("a"), Runs(folders("a"), {2: ReportedError("squeue does not answer", of_queue=True)}), trials=4)
    assert error.value.text == "squeue does not answer"
    assert [trial.state.name for trial in trials(folders("a"))] == ["COMPLETE", "COMPLETE", "RUNNING"]
    search(folders("a"), Runs(folders("a")), trials=4)
    assert [trial.state.name for trial in trials(folders("a"))] == ["COMPLETE"] * 4


def test_a_command_that_never_works_ends_and_is_tried_again(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ReportedError) as error:
        search(folders("a"), Runs(folders("a"), {0: ReportedError("no such images")}))
    assert "no trial has finished yet" in error.value.text
    runs = Runs(folders("a"))
    search(folders("a"), runs, trials=2)
    assert len(runs.started) == len(trials(folders("a"))) == 2


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["x=4"], {}, "searches nothing"),
        (["seed=0,1"], {}, "seed=0,1: seed is not searched"),
        (None, {"algorithm": "grid"}, r"loss.lambda_max=interval\(0.1,0.9\) has no grid"),
        (None, {"trials": None}, "say how many trials: hydra.sweeper.trials=N"),
        (None, {"trials": 0}, "hydra.sweeper.trials=0: give 1 or more"),
        (None, {"metric": None}, "say what is searched: hydra.sweeper.metric=KEY"),
        (None, {"direction": None}, "say what is searched: hydra.sweeper.metric=KEY"),
        (None, {"metric": "val/difusion"}, "is no metric of .*did you mean 'val/diffusion'"),
    ],
)
def test_mistakes_are_said_in_one_line(
    folders: Callable[[str], Path], arguments: list[str] | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ReportedError) as error:
        search(folders("a"), Runs(folders("a")), arguments, **settings)
    assert re.search(message, error.value.text), error.value.text


def test_a_value_that_is_not_a_number_is_a_failure(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ReportedError) as error:
        search(folders("a"), Runs(folders("a")), metric="final/x")
    assert "no trial has finished yet" in error.value.text


def test_two_processes_do_not_run_one_search(folders: Callable[[str], Path]) -> None:
    class Second(Runs):
        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
            with pytest.raises(ReportedError) as error:
                search(folders("a"), Runs(folders("a")), trials=1)
            assert "is being run by another process" in error.value.text
            return super().launch(job_overrides, initial_job_idx)

    search(folders("a"), Second(folders("a")), trials=1)
    assert len(trials(folders("a"))) == 1


def test_whole_numbers_and_logarithms(folders: Callable[[str], Path]) -> None:
    space = ["loss.lambda_max=tag(log,interval(1e-4,1))", "head.depth=int(interval(1,4))"]
    search(folders("a"), Runs(folders("a")), space, trials=12)
    found = [params for params, _ in values(folders("a"))]
    assert {type(params["head.depth"]) for params in found} == {int}
    assert all(1 <= params["head.depth"] <= 4 for params in found)
    (scale,) = {trial.distributions["loss.lambda_max"].log for trial in trials(folders("a"))}
    assert scale
    assert sum(params["loss.lambda_max"] < 0.1 for params in found) > 3
