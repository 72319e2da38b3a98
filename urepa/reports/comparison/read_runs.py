"""Reads runs from folders, in the form in which runs from MLflow are read too.

Config values are text, as in MLflow, so that values from both sources compare equal.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from urepa.core import progress
from urepa.core.code_version import Code, code_of
from urepa.core.errors import UserError, did_you_mean
from urepa.core.files import read_json
from urepa.core.nested_dicts import flatten
from urepa.reports.comparison.metric_columns import is_compared
from urepa.runs.curves import Curve, read_curves
from urepa.runs.metrics import Rows
from urepa.runs.run_folder import facts_of, stored_names, tags_of
from urepa.runs.stored_config import check_parts, read_plain
from urepa.runs.summary import has_valid_end, is_finished
from urepa.runs.upgrades import upgrade
from urepa.training.provenance import facts_so_far

LONGEST_VALUE = 6000  # MLflow truncates parameters at this length
CLASSES, GROUPS = ("backbone", "teacher", "objective"), ("lora", "head", "loss", "data", "trainer", "tracking")
SHOWN = 20  # names listed in a sentence
NAMES = {"experiment", "ablation"}  # keys that every summary has
GIVE_FOLDER = "for parts of your own package give --config-dir FOLDER, whose files name them"


@dataclass(frozen=True)
class Run:
    """One run. `status` is finished, unfinished or failed. `facts` are the entries of summary.json besides metrics.
    Runs are first found and selected; the curves are read only for selected runs. `damage` names the data that could
    not be read and says what to do ("" if there is none); the values of a damaged run must not be compared."""

    id: str
    name: str
    config: dict[str, str]
    tags: dict[str, str]
    status: str
    facts: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)
    started: int = 0  # time of the first row in ms
    damage: str = ""
    title: str = ""  # the MLflow run's name

    def is_called(self, word: str) -> bool:
        """Whether `word` is its MLflow run's id or name, its folder, or that folder's name."""
        return word in (self.id, self.name, self.title)

    @property
    def experiment(self) -> str:
        return self.tags["experiment"]

    @property
    def ablation(self) -> str:
        return self.tags["ablation"]

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def code(self) -> tuple[Code, ...]:
        """The code of each stretch of its steps; for runs of earlier versions only the code of the last stretch."""
        stretches = self.facts.get("code", [self.tags | self.facts])
        return tuple(code_of(stretch) for stretch in stretches)

    @property
    def last_step(self) -> int:
        return max((int(curve.steps[-1]) for curve in self.curves.values()), default=0)

    @property
    def first_step(self) -> int:
        return min((int(curve.steps[0]) for curve in self.curves.values()), default=0)

    def last(self, key: str) -> float | None:
        """The last value of a metric; None if it was not logged."""
        return float(self.curves[key].values[-1]) if key in self.curves else None


def as_text(config: dict[str, Any]) -> dict[str, str]:
    """A nested config in the flat form of MLflow's parameters."""
    return {key: str(value)[:LONGEST_VALUE] for key, value in flatten(config).items()}


# --- folders ------------------------------------------------------------------------------------------------


def find_folders(pattern: str) -> list[Run]:
    """All runs below the folders that match `pattern`, without their curves. Raises UserError if there are none."""
    return find_all(pattern)[0]


def find_all(pattern: str) -> tuple[list[Run], list[Path]]:
    """The runs of `find_folders`, and the folders whose config.yaml does not belong to a run."""
    places = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
    found = {folder: _run_from_folder(folder) for place in places for folder in _run_folders(place)}
    runs = [run for run in found.values() if run is not None]
    foreign = [folder for folder, run in found.items() if run is None]
    if not runs:
        first = _damage(foreign[0]) or str(foreign[0] / "config.yaml") if foreign else ""
        others = f", but {len(foreign)} other config.yaml (first: {first})" if foreign else ""
        more = f"; {GIVE_FOLDER}" if any(map(has_other_parts, foreign)) else ""
        raise UserError(
            f"there are no runs in {pattern}{others}; give runs=FOLDER, or store=URI for an MLflow store{more}"
        )
    return runs, foreign


def _run_folders(place: str) -> Iterable[Path]:
    for here, below, files in os.walk(place):
        below.sort()
        if "config.yaml" in files:
            below.clear()  # checkpoints contain the config too
            yield Path(here)


def _run_from_folder(folder: Path) -> Run | None:
    """A run from its config.yaml and its summary.json, before it is finished its provenance.json; None if another
    program wrote the files."""
    file = folder / "summary.json"
    try:
        config = read_plain(folder / "config.yaml")
        summary = read_json(file) if file.exists() else {}
    except (ValueError, TypeError):  # not YAML or JSON, or more than plain data
        return None
    if not _is_runs(config) or not isinstance(summary, dict) or (file.exists() and not summary.keys() >= NAMES):
        return None
    if not has_valid_end(summary):
        return None
    config = upgrade(config)
    if not _has_own_parts(config):
        return None
    done = "step" in summary and is_finished(summary, config["trainer"]["max_steps"])
    facts = facts_of(summary)
    if not done:
        try:
            facts |= facts_so_far(folder)
        except (ValueError, TypeError):
            return None
    if summary and not done:  # it is being extended, and its summary is of its earlier end
        facts |= {"extended_from": summary.get("step")}
    names = stored_names(folder)
    tracking = config["tracking"]
    trackers = [tracking, *(tracking.get("trackers") or {}).values()]  # tracking=several has others below it
    given = {str(k): str(v) for one in trackers for k, v in (one.get("tags") or {}).items()}
    return Run(
        id=str(folder),
        name=printable_path(f"{folder.parent.name}/{folder.name}"),
        config=as_text(config),
        tags={k: printable_path(v) for k, v in (tags_of(names, config) | given).items()},
        status="finished" if done else "unfinished",
        facts=facts,
        title=names.title(config["seed"]),
    )


def _damage(folder: Path) -> str:
    """What is wrong with the files of a folder that is not read as a run; "" if they are intact and another
    program's."""
    file = folder / "summary.json"
    try:
        read_plain(folder / "config.yaml")
        if file.exists():
            read_json(file)
    except ValueError as error:
        return str(error)
    return ""


def _has_own_parts(config: dict[str, Any]) -> bool:
    """Whether every part that the config names belongs to urepa."""
    try:
        check_parts(config)
    except UserError:
        return False
    return True


def has_other_parts(folder: Path) -> bool:
    """Whether the folder is that of a run with parts of another package, which are not declared in this process."""
    try:
        config = read_plain(folder / "config.yaml")
    except ValueError:
        return False
    targets = [value for key, value in flatten(config).items() if key.endswith("._target_")] if _is_runs(config) else []
    return any(str(target).partition(".")[0] != "urepa" for target in targets)


def printable_path(name: str) -> str:
    """A path as text that can be encoded: bytes that are not UTF-8 are escaped."""
    return name.encode(errors="backslashreplace").decode()


def _is_runs(config: Any) -> bool:
    """Whether the config has the parts from which a run's tags and its order among other runs are read."""
    if not isinstance(config, dict) or not isinstance(config.get("seed"), int):
        return False
    if not all(isinstance(config.get(part), dict) for part in (*CLASSES, *GROUPS)):
        return False
    named = all("_target_" in config[part] for part in CLASSES)
    return named and "name" in config["data"] and "max_steps" in config["trainer"]


def load_curves(runs: list[Run]) -> list[Run]:
    """The runs with the curves of the compared metrics in their metrics.jsonl."""
    full = []
    for run in progress.bar(runs, desc="runs", unit="run", leave=False):
        rows = Rows(Path(run.id) / "metrics.jsonl")
        curves, started = read_curves(rows, is_compared)
        end = int(run.facts["step"]) if run.status == "finished" else None
        full.append(replace(run, curves=curves, started=started, damage=rows.damage(end)))
    return full


# --- selection ----------------------------------------------------------------------------------------------


def select(runs: list[Run], experiments: list[str], ablations: list[str], tag: str | None, ids: list[str]) -> list[Run]:
    """The runs that match all given filters. Names may be shell patterns. Raises UserError if a name or pattern matches
    no run, or if no run matches all filters."""
    ids = [word.rstrip("/") for word in ids]
    if unknown := [word for word in ids if not any(run.is_called(word) for run in runs)]:
        raise UserError(
            f"ids={','.join(unknown)}: there is no such run; give MLflow run ids or names, or run folders, as "
            f"{runs[0].id}"
        )
    for kind, patterns in (("experiment", experiments), ("ablation", ablations)):
        _require_each(kind, patterns, sorted({str(getattr(run, kind)) for run in runs}))
    _require_tag(tag, runs)
    chosen = [
        run
        for run in runs
        if _matches(run.experiment, experiments)
        and _matches(run.ablation, ablations)
        and (not ids or any(run.is_called(word) for word in ids))
        and (tag is None or _has_tag(run, tag))
    ]
    if chosen:
        return chosen
    asked = {"experiment": experiments, "ablation": ablations, "tag": tag, "ids": ids}
    given = " and ".join(
        f"{key}={value if isinstance(value, str) else ','.join(value)}" for key, value in asked.items() if value
    )
    raise UserError(f"none of the {len(runs)} runs matches {given} at once: leave one of them out")


def _require_each(kind: str, patterns: list[str], names: list[str]) -> None:
    """Raises UserError for a name or pattern that no run has."""
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in names):
            raise UserError(
                f"{kind}={pattern}: no run here has that; there are: {_some(names)}"
                f"{did_you_mean(pattern.strip('*'), names)}"
            )


def _require_tag(tag: str | None, runs: list[Run]) -> None:
    """Raises UserError for a tag, or a value of it, that no run has."""
    if tag is None:
        return
    key, equals, value = tag.partition("=")
    if not equals:
        raise UserError(f"tag={tag}: give tag=KEY=VALUE")
    keys = sorted({name for run in runs for name in run.tags})
    if key not in keys:
        raise UserError(f"tag={tag}: no run here has a tag '{key}'; there are: {_some(keys)}{did_you_mean(key, keys)}")
    values = sorted({run.tags[key] for run in runs if key in run.tags})
    if not any(_matches(one, [value]) for one in values):
        raise UserError(f"tag={tag}: no run's tag '{key}' is that; there are: {_some(values)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _matches(name: str, patterns: list[str]) -> bool:
    return not patterns or any(name == p or fnmatchcase(name, p) for p in patterns)


def _has_tag(run: Run, tag: str) -> bool:
    key, _, value = tag.partition("=")
    return key in run.tags and _matches(run.tags[key], [value])
