"""Hydra's sweeper `hydra/sweeper=optuna`: searches for the settings with the best value of a metric, with Optuna's ask
and tell. Each trial is an ordinary run: the command that a user would type, started by Hydra's launcher.

Trials are stored in a database. The same command goes on after a kill: trials that were begun are run first, with the
same settings and so in the same folders, where the runs resume or are found finished. The sampler is seeded for each
trial and key, so a search that was interrupted proposes what it would have proposed. hydra-optuna-sweeper is not
used: it asks for Optuna below 3, and each start proposes all trials anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from urepa.config.launcher_schemas import OptunaSearch
from urepa.core.errors import UserError, did_you_mean
from urepa.core.one_line_errors import ReportedError, one_line_mistakes
from urepa.runs.summary import is_finished, read_summary

SQLITE = "sqlite:///"
GRID = "grid"
NOT_SEARCHED = ("seed",)  # the best of several seeds says nothing about a setting


class Space(NamedTuple):
    """The keys that are searched with their sweeps, and the overrides that all trials share."""

    sweeps: dict[str, Override]
    shared: list[str]


class Trial(NamedTuple):
    """A trial that has begun: Optuna's, and the overrides of its run."""

    asked: Any
    own: list[str]  # of the searched keys
    overrides: list[str]


class OptunaSweeper(OptunaSearch, Sweeper):
    """A search over the intervals, ranges and choices of a command. Hydra makes it from its settings and calls `setup`,
    then `sweep`."""

    hydra_context: Any
    config: Any
    launcher: Any

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings as plain data."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_target_"}
        plain = OmegaConf.to_container(OmegaConf.create(values), enum_to_str=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials that are not done. Called by Hydra."""
        from urepa.config.ranges import check_numbers

        with one_line_mistakes():
            if None in (self.settings["metric"], self.settings["direction"]):
                raise UserError(
                    "say what is searched: hydra.sweeper.metric=KEY, one of the metrics in summary.json, and "
                    "hydra.sweeper.direction=minimize or maximize"
                )
            check_numbers({"hydra": {"sweeper": self.settings | {"_target_": OptunaSearch._target_}}})
            space = self._space(arguments)
            _optuna()
            folder = Path(self.config.hydra.sweep.dir)
            name = self._name(space)
            if not (folder / f".{name}.lock").exists():  # a search that has begun goes on with what it finds
                self.validate_batch_is_legal(self._examples(space))  # before anything is written
            folder.mkdir(parents=True, exist_ok=True)
            with _only_one(folder / f".{name}.lock", name):
                OmegaConf.save(self.config, folder / "multirun.yaml")
                self._search(self._study(name), space)

    # --- what is searched -------------------------------------------------------------------------------

    def _space(self, arguments: list[str]) -> Space:
        """The searched keys. Raises UserError if there are none, or if one cannot be searched."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        typed = [f"{key}={value}" for key, value in (self.settings["params"] or {}).items()]
        overrides = {o.get_key_element(): o for o in parser.parse_overrides([*typed, *arguments])}
        sweeps = {key: o for key, o in overrides.items() if o.is_sweep_override()}
        shared = [f"{k}={o.get_value_element_as_str()}" for k, o in overrides.items() if k not in sweeps]
        if not sweeps:
            raise UserError(
                "hydra/sweeper=optuna searches nothing: give a key several values, as loss.lambda_max='interval(0,1)'"
            )
        for key, override in sweeps.items():
            if key in NOT_SEARCHED:
                raise UserError(f"{override.input_line}: {key} is not searched; give one, and repeat the best trial")
            if self.settings["algorithm"] == GRID and isinstance(override.value(), IntervalSweep):
                raise UserError(f"{override.input_line} has no grid: give its values, as {key}=0.1,0.3,1")
        return Space(sweeps, shared)

    def _examples(self, space: Space) -> list[list[str]]:
        """Overrides of runs that show whether the searched values can be run: all points of a grid; otherwise each
        value of a key, and the middle of an interval, beside the first values of the other keys."""
        values = {key: _example_values(override) for key, override in space.sweeps.items()}
        if self.settings["algorithm"] == GRID:
            points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
        else:
            first = {key: some[0] for key, some in values.items()}
            points = [first | {key: value} for key, some in values.items() for value in some]
        return [[*space.shared, *(f"{key}={value}" for key, value in point.items())] for point in points]

    def _name(self, space: Space) -> str:
        """The study's name: a digest of everything that makes it another search. More trials make the same one
        longer."""
        if self.settings["study"] is not None:
            return str(self.settings["study"])
        sweeps = sorted(str(override.input_line) for override in space.sweeps.values())
        kept = {k: v for k, v in self.settings.items() if k not in ("trials", "at_once", "storage", "study", "params")}
        text = repr((sweeps, sorted(space.shared), sorted(kept.items())))
        return f"search-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def _study(self, name: str) -> Any:
        """The stored study; a new one if there is none."""
        optuna = _optuna()
        storage = self.settings["storage"]
        if storage.startswith(SQLITE):
            Path(storage.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        known = {"storage": storage, "study_name": name, "direction": self.settings["direction"]}
        return optuna.create_study(**known, load_if_exists=True, pruner=optuna.pruners.NopPruner())

    # --- the search -------------------------------------------------------------------------------------

    def _search(self, study: Any, space: Space) -> None:
        """Runs the trials that were begun, and then new ones up to the wanted number."""
        wanted = self._wanted(study, space)
        print(f"search {study.study_name} in {self.settings['storage']}: {wanted} trials", flush=True)
        failed: list[str] = []
        number = 0
        while batch := self._next_batch(study, space, wanted):
            for trial in batch:  # what does not compose ends the search; what its own checks refuse is a failed trial
                self.hydra_context.config_loader.load_sweep_config(self.config, trial.overrides)
            self._launch(batch, number)
            failed += self._tell(study, batch, wanted)
            number += len(batch)
        done = study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.COMPLETE,))
        if done:
            best = study.best_trial
            print(f"best of {len(done)}: trial {best.number}, {self.settings['metric']}={best.value:.6g}", flush=True)
            print(f"    {' '.join(f'{key}={value}' for key, value in best.params.items())}", flush=True)
        if failed:
            raise UserError(f"{len(failed)} trials failed, and count as such: {'; '.join(failed)}")

    def _wanted(self, study: Any, space: Space) -> int:
        """The number of trials; of a grid, which is queued as a whole, at most its points."""
        trials: int | None = self.settings["trials"]
        if self.settings["algorithm"] != GRID:
            if trials is None:
                raise UserError("say how many trials: hydra.sweeper.trials=N")
            return trials
        values = [_values(override) for override in space.sweeps.values()]
        points = [dict(zip(space.sweeps, point, strict=True)) for point in itertools.product(*values)]
        for point in points:
            study.enqueue_trial(point, skip_if_exists=True)
        return len(points) if trials is None else min(trials, len(points))

    def _next_batch(self, study: Any, space: Space, wanted: int) -> list[Trial]:
        """The trials to run next: those that were begun, or new ones; none if all are done."""
        states = _optuna().trial.TrialState
        known = [t for t in study.get_trials(deepcopy=False) if t.state != states.WAITING]
        begun = [t for t in known if t.state == states.RUNNING][: self.settings["at_once"]]
        batch = [self._trial(study, space, t.number, t._trial_id) for t in begun]
        if not batch:
            for number in range(len(known), min(wanted, len(known) + self.settings["at_once"])):
                batch.append(self._trial(study, space, number, None))
        return batch

    def _trial(self, study: Any, space: Space, number: int, begun: int | None) -> Trial:
        """A new trial, or the one that was begun with this id, with a value for each searched key. Values that were
        stored are the same again."""
        optuna = _optuna()
        asked = study.ask() if begun is None else optuna.trial.Trial(study, begun)
        own = []
        for key, override in space.sweeps.items():
            seed = _seed(f"{self.settings['seed']}/{number}/{key}")
            asked.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            own.append(f"{key}={_suggest(asked, key, override)}")
        return Trial(asked, own, [*space.shared, *own])

    def _launch(self, batch: Sequence[Trial], number: int) -> None:
        """Runs a batch. A trial that failed is found by its missing summary; a signal or a queue that does not answer
        ends the search, and its trials stay begun."""
        try:
            for one in self.launcher.launch([trial.overrides for trial in batch], initial_job_idx=number):
                _ = one.return_value
        except ReportedError as stop:  # it was printed
            if stop.of_queue:
                raise
        except Exception:  # noqa: BLE001  the other trials do not depend on this one
            traceback.print_exc()

    def _tell(self, study: Any, batch: Sequence[Trial], wanted: int) -> list[str]:
        """Stores the values of the batch's finished runs; returns the trials that failed. If no trial of the study has
        a value, the command itself is probably wrong: raises UserError, and the trials stay begun."""
        states = _optuna().trial.TrialState
        failed = []
        values = [self._value(trial) for trial in batch]
        if not any(v is not None for v in values) and not study.get_trials(deepcopy=False, states=(states.COMPLETE,)):
            raise UserError("no trial has finished yet, so the search ends here; the same command goes on with it")
        for trial, value in zip(batch, values, strict=True):
            text = " ".join(trial.own)
            if value is None:
                study.tell(trial.asked, state=states.FAIL)
                failed.append(text)
            else:
                study.tell(trial.asked, value)
            said = "failed" if value is None else f"{self.settings['metric']}={value:.6g}"
            print(f"[{trial.asked.number + 1}/{wanted}] {text}: {said}", flush=True)
        return failed

    def _value(self, trial: Trial) -> float | None:
        """The metric of a trial's run; None if the run is not finished. Raises UserError if the run has no such
        metric."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(trial.overrides))
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        summary = read_summary(folder)
        if summary is None or not is_finished(summary, config.trainer.max_steps):
            return None
        metric, metrics = self.settings["metric"], summary["metrics"]
        if metric not in metrics:
            near = did_you_mean(metric, list(metrics))
            raise UserError(f"hydra.sweeper.metric={metric} is no metric of {folder}{near}")
        value = float(metrics[metric])
        return value if abs(value) < float("inf") else None  # NaN and infinite values are failures


def _optuna() -> Any:
    """The package, without its log lines: the search prints its own. Raises UserError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"hydra/sweeper=optuna needs the package optuna ({error}): pip install 'urepa[optuna]', or pip install "
            "optuna"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _values(override: Override) -> list[Any]:
    """The values of a choice or a range, as Hydra's grammar reads them."""
    sweep: Any = override.value()
    if isinstance(sweep, RangeSweep):
        return list(sweep.range())
    return list(override.sweep_string_iterator())


def _example_values(override: Override) -> list[Any]:
    """The values of a choice or a range, or the middle of an interval."""
    sweep: Any = override.value()
    if not isinstance(sweep, IntervalSweep):
        return _values(override)
    start, end = sweep.start, sweep.end
    assert start is not None
    assert end is not None
    return [(start + end) // 2 if isinstance(start, int) and isinstance(end, int) else (start + end) / 2]


def _suggest(asked: Any, key: str, override: Override) -> Any:
    """The value of a searched key in a trial: of an interval any number (whole ones of `int(interval(1,4))`, on a
    logarithmic scale with `tag(log,interval(...))`), otherwise one of the values."""
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        suggest = asked.suggest_int if isinstance(sweep.start, int) and isinstance(sweep.end, int) else None
        return (suggest or asked.suggest_float)(key, sweep.start, sweep.end, log="log" in sweep.tags)
    assert isinstance(sweep, ChoiceSweep | RangeSweep)
    return asked.suggest_categorical(key, _values(override))


def _seed(address: str) -> int:
    """A seed of 32 bits for the proposal of a key in a trial."""
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:4], "big")


@contextmanager
def _only_one(file: Path, name: str) -> Iterator[None]:
    """Holds a lock, so that no second process runs the same trials. Raises UserError if another one has it."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"the search {name} is being run by another process; wait for it, or stop it") from None
        yield
    finally:
        os.close(lock)
