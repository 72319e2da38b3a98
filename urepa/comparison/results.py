"""The numbers of a study: a cell per arm and metric, and its difference to the baseline.

Shapes: A arms, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite, nan

import numpy as np

from urepa.comparison.arms import Arm, Study
from urepa.comparison.comparable import (
    Metric,
    at_other_noise,
    bins_of,
    is_reference,
    metrics_of,
    obstacles,
    unpaired_by,
)
from urepa.comparison.runs import Run
from urepa.comparison.statistics import bootstrap, holm, paired, welch

SIGNIFICANT = 0.05
PAIRED, SAME_SEEDS, OTHER_SEEDS = "paired", "same seed, not paired", "other seeds, not paired"


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds (NaN with one), or `why` there is none."""

    mean: float = nan
    sd: float = nan
    n: int = 0
    why: str = ""

    @property
    def filled(self) -> bool:
        return self.n > 0


@dataclass(frozen=True)
class Difference:
    """Arm less baseline: mean, 95 % interval, p, Holm's p over the arms; NaN, with `why`, where there is none."""

    mean: float
    low: float
    high: float
    p: float
    n: int
    how: str
    p_holm: float = nan
    bootstrap: tuple[float, float] | None = None
    why: str = ""

    @property
    def mark(self) -> str:
        """● the interval excludes 0, after Holm too; ◐ it excludes 0, but not after Holm; ○ it does not."""
        if not isfinite(self.p):
            return ""
        if self.low <= 0 <= self.high:
            return "○"
        return "●" if self.p_holm < SIGNIFICANT else "◐"


@dataclass(frozen=True)
class Row:
    """An arm's line in the table; cells and differences by metric key, costs by name."""

    arm: Arm
    cells: dict[str, Cell]
    differences: dict[str, Difference]
    costs: dict[str, Cell]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """Everything that tables, figures and the report show."""

    study: Study
    metrics: tuple[Metric, ...]
    bins: tuple[str, ...]  # keys of the error of the implied x0 by timestep
    rows: tuple[Row, ...]
    references: dict[str, Cell]


def gigabytes(run: Run) -> float | None:
    peak = run.facts.get("peak_memory_bytes")
    return None if peak is None else peak / 1e9


def trainable(run: Run) -> float | None:
    """Parameters that train, in millions."""
    counts = run.facts.get("parameters")
    return None if counts is None else sum(n for name, n in counts.items() if name.endswith("_trainable")) / 1e6


def seconds_a_step(run: Run) -> float | None:
    seconds = run.facts.get("seconds")
    return None if seconds is None else seconds["training"] / run.facts["step"]


def gpu_hours(run: Run) -> float | None:
    """Of training; a run without a GPU has none."""
    if "seconds" not in run.facts or not run.facts["device"].startswith("cuda"):
        return None
    return run.facts["seconds"]["training"] * run.facts["processes"] / 3600


COSTS: dict[str, Callable[[Run], float | None]] = {
    "trainable, M": trainable,
    "s/step": seconds_a_step,
    "GPU-hours": gpu_hours,
    "peak memory, GB": gigabytes,
}


def summarise(study: Study) -> Results:
    """All cells and differences of a study."""
    runs = [run for arm in study.arms for run in arm.runs.values()]
    keys = {key for run in runs for key in run.curves}
    metrics, bins = metrics_of(keys), bins_of(keys, "x0_error")
    shown = [metric.key for metric in metrics] + bins
    cells = [{key: _compared(arm, study.baseline, key) for key in shown} for arm in study.arms]
    differences: list[dict[str, Difference]] = [{} for _ in study.arms]
    for key in (metric.key for metric in metrics):
        family = [
            _difference(arm, study.baseline, key) if cells[i][key].filled and cells[0][key].filled else None
            for i, arm in enumerate(study.arms)
            if i > 0
        ]
        adjusted = holm(np.array([nan if d is None else d.p for d in family]))
        for into, difference, p_holm in zip(differences[1:], family, adjusted, strict=True):
            if difference is not None:
                into[key] = replace(difference, p_holm=float(p_holm))
    rows = tuple(
        Row(arm, cells[i], differences[i], _costs(arm), _notes(arm, study.baseline)) for i, arm in enumerate(study.arms)
    )
    references = {key: last_cell(study.baseline, key) for key in sorted(keys) if is_reference(key)}
    return Results(study, tuple(metrics), tuple(bins), rows, references)


def over_seeds(values: list[float | None], missing: str = "not measured") -> Cell:
    """The cell of a value per seed; a seed without one is left out."""
    there = np.array([v for v in values if v is not None])
    if not len(there):
        return Cell(why=missing)
    if not np.isfinite(there).all():
        return Cell(why=f"not finite in {int((~np.isfinite(there)).sum())} of {len(there)} seeds")
    return Cell(float(there.mean()), float(there.std(ddof=1)) if len(there) > 1 else nan, len(there))


def last_cell(arm: Arm, key: str) -> Cell:
    """A metric's last values."""
    return over_seeds([run.last(key) for run in arm.runs.values()])


def _compared(arm: Arm, baseline: Arm, key: str) -> Cell:
    """The arm's cell, empty if it cannot stand beside the baseline's."""
    cell = last_cell(arm, key)
    different = obstacles(key, arm.config, baseline.config)
    return Cell(why=f"not comparable: another {_names(different)}") if cell.filled and different else cell


def _names(keys: list[str]) -> str:
    return ", ".join(key.removesuffix("._target_") for key in keys)


def _difference(arm: Arm, baseline: Arm, key: str) -> Difference:
    here = {seed: v for seed, run in arm.runs.items() if (v := run.last(key)) is not None}
    there = {seed: v for seed, run in baseline.runs.items() if (v := run.last(key)) is not None}
    shared = sorted(here.keys() & there.keys())
    if shared and not unpaired_by(arm.config, baseline.config):
        by_seed = np.array([here[seed] - there[seed] for seed in shared])
        found, n, how, resampled = paired(by_seed), len(shared), PAIRED, bootstrap(by_seed)
    else:
        found = welch(np.array(list(here.values())), np.array(list(there.values())))
        n, how, resampled = min(len(here), len(there)), SAME_SEEDS if shared else OTHER_SEEDS, None
    why = ""
    if not isfinite(found.p):
        why = "one seed: no interval" if n < 2 else "the same in every seed: no interval"
    mean, low, high, p = (float(value) for value in found)
    return Difference(mean, low, high, p, n, how, bootstrap=resampled, why=why)


def _costs(arm: Arm) -> dict[str, Cell]:
    return {name: over_seeds([cost(run) for run in arm.runs.values()], "not recorded") for name, cost in COSTS.items()}


def _notes(arm: Arm, baseline: Arm) -> tuple[str, ...]:
    """What a reader of this arm's line must know."""
    notes = []
    if different := unpaired_by(arm.config, baseline.config):
        notes.append(f"same seed, not paired: {', '.join(different)} differs, so it saw other data or noise")
    elif not arm.runs.keys() & baseline.runs.keys():
        notes.append("not paired: it shares no seed with the baseline")
    if noise := at_other_noise(arm.config, baseline.config):
        notes.append(f"{', '.join(noise)} differs: the same timestep is another noise level")
    return tuple(notes)


def fewest_seeds(results: Results) -> int:
    """The smallest number of seeds of an arm."""
    return min(len(row.arm.runs) for row in results.rows)
