"""Runs grouped into arms by what they computed, not by their names; what cannot be compared is set apart.

A study has one validation set and protocol, one version of the code, and one baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import combinations
from math import prod

from urepa.comparison.comparable import protocol
from urepa.comparison.runs import Run
from urepa.errors import UserError
from urepa.runs import is_identity

ABSENT = "—"
SHOWN_REASONS = 3

SameCode = Callable[[tuple[str, str], tuple[str, str]], bool]


@dataclass(frozen=True)
class Change:
    """One setting in which an arm differs from the baseline."""

    key: str
    baseline: str
    here: str

    def __str__(self) -> str:
        return f"{self.key}: {self.baseline} → {self.here}"


@dataclass(frozen=True)
class Apart:
    """A run that is not averaged into anything, and why."""

    run: Run
    reason: str


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seed, by seed."""

    label: str
    config: dict[str, str]
    runs: dict[int, Run]
    changes: tuple[Change, ...]

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Study:
    """The baseline first, then the other arms in order."""

    arms: tuple[Arm, ...]
    apart: tuple[Apart, ...]
    why_baseline: str

    @property
    def baseline(self) -> Arm:
        return self.arms[0]


def group(runs: list[Run], order: list[str], baseline: str | None, same_code: SameCode) -> Study:
    """The study that these runs make. UserError if none is finished, or `baseline` names no arm or several."""
    usable, apart = _finished(runs)
    if not usable:
        raise UserError(f"none of the {len(runs)} runs is finished: {apart[0].run.name} is {apart[0].reason}")
    leading = [run for run in usable if baseline is not None and _is_meant(run, baseline)] or usable
    usable, others = _one_protocol(usable, leading)
    apart += others
    leading = [run for run in leading if run in usable]
    usable, others = _one_code(usable, leading, same_code)
    apart += others
    usable, others = _once_each(usable)
    apart += others
    by_config: dict[Hashable, list[Run]] = {}
    for run in usable:
        by_config.setdefault(tuple(sorted(_identity(run.config).items())), []).append(run)
    groups = list(by_config.values())
    labels = _labels(groups)
    groups.sort(key=lambda g: _place(g[0], labels[g[0].id], order))
    chosen, why = _baseline(groups, labels, baseline)
    arms = [
        Arm(
            labels[g[0].id],
            g[0].config,
            {run.seed: run for run in sorted(g, key=lambda run: run.seed)},
            tuple(changes(chosen[0].config, g[0].config)),
        )
        for g in [chosen, *(g for g in groups if g is not chosen)]
    ]
    return Study(tuple(arms), tuple(apart), why)


# --- what is set apart --------------------------------------------------------------------------------------


def _finished(runs: list[Run]) -> tuple[list[Run], list[Apart]]:
    usable, apart = [], []
    for run in runs:
        if run.status != "finished":
            apart.append(Apart(run, f"{run.status}: its last logged step is {run.last_step}"))
        elif run.facts.get("extended_from") is not None:
            steps = run.facts["extended_from"]
            apart.append(Apart(run, f"extended from {steps} steps: its learning rate is not that of a run in one go"))
        else:
            usable.append(run)
    return usable, apart


def _one_protocol(runs: list[Run], leading: list[Run]) -> tuple[list[Run], list[Apart]]:
    """The runs that were measured like most of the leading ones; on a tie, like the newest."""
    of = {run.id: protocol(run.config, run.facts) for run in runs}
    counts = Counter(tuple(sorted(of[run.id].items())) for run in leading)
    newest = max(leading, key=lambda run: (counts[tuple(sorted(of[run.id].items()))], run.started))
    reference = of[newest.id]
    usable, apart = [], []
    for run in runs:
        differing = [
            f"{k} is {of[run.id].get(k, ABSENT)}, not {reference.get(k, ABSENT)}"
            for k in sorted(of[run.id].keys() | reference.keys())
            if of[run.id].get(k) != reference.get(k)
        ]
        if differing:
            more = f", and {len(differing) - SHOWN_REASONS} more" if len(differing) > SHOWN_REASONS else ""
            reason = f"another validation set or protocol: {'; '.join(differing[:SHOWN_REASONS])}{more}"
            apart.append(Apart(run, reason))
        else:
            usable.append(run)
    return usable, apart


def _one_code(runs: list[Run], leading: list[Run], same_code: SameCode) -> tuple[list[Run], list[Apart]]:
    """The runs of the version that made most of the leading ones; on a tie, of the newest."""
    versions = list(dict.fromkeys(run.code for run in runs))
    like = {(a, b): a == b or same_code(a, b) for a in versions for b in versions}
    newest = max(leading, key=lambda run: (sum(like[run.code, other.code] for other in leading), run.started))
    usable, apart = [], []
    for run in runs:
        if like[run.code, newest.code]:
            usable.append(run)
        else:
            apart.append(Apart(run, f"another version of the code: {_version(run.code)}, not {_version(newest.code)}"))
    return usable, apart


def _version(code: tuple[str, str]) -> str:
    commit, state = code
    return f"{commit[:9]} ({state})" if state != "clean" else commit[:9]


def _once_each(runs: list[Run]) -> tuple[list[Run], list[Apart]]:
    """Of runs with the same config and seed, the newest."""
    newest: dict[Hashable, Run] = {}
    for run in sorted(runs, key=lambda run: run.started):
        newest[tuple(sorted(_identity(run.config, seed=True).items()))] = run
    kept = {run.id for run in newest.values()}
    apart = [Apart(run, "the same arm and seed once more: the newest is taken") for run in runs if run.id not in kept]
    return [run for run in runs if run.id in kept], apart


# --- config differences -------------------------------------------------------------------------------------


def _identity(config: dict[str, str], seed: bool = False) -> dict[str, str]:
    return {k: v for k, v in config.items() if is_identity(k) and (seed or k != "seed")}


def varying(configs: list[dict[str, str]]) -> list[str]:
    """Settings in which the configs differ. Where a part was exchanged (`x._target_`), its settings that only
    come with one of the parts say nothing more and are left out."""
    identities = [_identity(config) for config in configs]
    keys = sorted(set().union(*identities))
    differ = [k for k in keys if len({config.get(k) for config in identities}) > 1]
    exchanged = {k.removesuffix("_target_") for k in differ if k.endswith("._target_")}

    def comes_along(key: str) -> bool:
        values = {config[key] for config in identities if key in config}
        partly = any(key not in config for config in identities)
        return len(values) == 1 and partly and any(key.startswith(part) for part in exchanged)

    return [k for k in differ if k.endswith("._target_") or not comes_along(k)]


def changes(baseline: dict[str, str], config: dict[str, str]) -> list[Change]:
    """What `config` has changed."""
    return [
        Change(k.removesuffix("._target_"), _short(k, baseline), _short(k, config)) for k in varying([baseline, config])
    ]


def _short(key: str, config: dict[str, str]) -> str:
    """A value for reading: a part by the last word of its _target_, a whole number without its ".0"."""
    value = config.get(key, ABSENT)
    return value.rpartition(".")[2] if key.endswith("._target_") else value.removesuffix(".0")


# --- names and order ----------------------------------------------------------------------------------------


def _labels(groups: list[list[Run]]) -> dict[str, str]:
    """A label for the first run of each group: its ablation, and in what it differs from others of that name."""
    several = len({g[0].experiment for g in groups}) > 1
    by_name: dict[tuple[str, str], list[Run]] = {}
    for g in groups:
        by_name.setdefault((g[0].experiment, g[0].ablation), []).append(g[0])
    labels = {}
    for (experiment, ablation), runs in by_name.items():
        keys = varying([run.config for run in runs])
        for run in runs:
            words = [f"{_word(k)}={_short(k, run.config)}" for k in keys]
            named = [] if ablation == "baseline" and words else [ablation]
            labels[run.id] = _one_line((f"{experiment}: " if several else "") + ", ".join(named + words))
    return labels


def _one_line(text: str) -> str:
    """Without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _word(key: str) -> str:
    """The part of a key that says enough beside its value."""
    return key.removesuffix("._target_").rpartition(".")[2]


def _place(run: Run, label: str, order: list[str]) -> tuple:
    """Where an arm stands: by the given order of ablations, then by the numbers in its label."""
    listed = order.index(run.ablation) if run.ablation in order else len(order)
    return listed, run.experiment, [_number_or_text(part) for part in label.replace(",", "=").split("=")]


def _number_or_text(part: str) -> tuple[int, float, str]:
    try:
        return 0, float(part), ""
    except ValueError:
        return 1, 0.0, part


def _is_meant(run: Run, wanted: str) -> bool:
    """Is `wanted` this run's ablation, or a list KEY=VALUE,... that its config fulfils?"""
    if run.ablation == wanted:
        return True
    pairs = [pair.partition("=") for pair in wanted.split(",")]
    return all(equals and _equal(value.strip(), run.config.get(key.strip(), ABSENT)) for key, equals, value in pairs)


def _equal(wanted: str, value: str) -> bool:
    """As text or as numbers: 0 is 0.0."""
    return _number_or_text(wanted) == _number_or_text(value)


def _baseline(groups: list[list[Run]], labels: dict[str, str], wanted: str | None) -> tuple[list[Run], str]:
    """The baseline's group, and why it is that one."""
    if wanted is not None:
        found = [g for g in groups if labels[g[0].id] == wanted] or [g for g in groups if _is_meant(g[0], wanted)]
        if len(found) == 1:
            return found[0], "chosen with baseline="
        there = ", ".join(labels[g[0].id] for g in (found or groups)[:12])
        problem = "fits several arms" if found else "names no arm"
        raise UserError(f"baseline={wanted} {problem}: {there}; give an ablation's name or KEY=VALUE,KEY=VALUE")
    named = [g for g in groups if g[0].ablation == "baseline"]
    if len(named) == 1:
        return named[0], "the arm named so" if len(groups) > 1 else "the only arm"
    candidates = named or groups
    settings = {g[0].id: _identity(g[0].config).items() for g in groups}
    distance = [sum(len(settings[g[0].id] ^ other) for other in settings.values()) for g in candidates]
    why = "it differs from the others in the fewest settings"
    if distance.count(min(distance)) > 1:
        why += "; of several such arms it is the first"
    return candidates[distance.index(min(distance))], why


# --- sweeps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Arms that differ from the baseline in one or two numbers alone. `arms` is by the values of `keys`; of two
    keys every combination is there."""

    keys: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    arms: dict[tuple[float, ...], Arm]


def sweeps(study: Study) -> list[Sweep]:
    """Grids of two settings (2x2 or larger), and lines of one (three values or more) that are in no grid."""
    changed = {arm.label: set(varying([study.baseline.config, arm.config])) for arm in study.arms}
    keys = [key for key in sorted(set().union(*changed.values())) if _is_number(key, study.arms)]
    grids = [found for pair in combinations(keys, 2) if (found := _sweep(study, pair, changed))]
    in_grids = {key for grid in grids for key in grid.keys}
    lines = [found for key in keys if key not in in_grids and (found := _sweep(study, (key,), changed))]
    return grids + lines


def _sweep(study: Study, keys: tuple[str, ...], changed: dict[str, set[str]]) -> Sweep | None:
    arms = {
        tuple(float(arm.config[key]) for key in keys): arm
        for arm in study.arms
        if changed[arm.label] <= set(keys) and all(key in arm.config for key in keys)
    }
    values = tuple(tuple(sorted({at[i] for at in arms})) for i in range(len(keys)))
    full = len(arms) == prod(map(len, values))
    fewest = 3 if len(keys) == 1 else 2
    if not full or min(map(len, values)) < fewest:
        return None
    # the longer one first: it goes along the x axis
    if len(keys) == 2 and len(values[0]) < len(values[1]):
        return Sweep(keys[::-1], values[::-1], {at[::-1]: arm for at, arm in arms.items()})
    return Sweep(keys, values, arms)


def _is_number(key: str, arms: tuple[Arm, ...]) -> bool:
    return all(_number_or_text(arm.config[key])[0] == 0 for arm in arms if key in arm.config)
