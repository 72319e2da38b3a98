"""Groups runs into arms by their settings, not by their names, and sets apart the runs that cannot be compared.

A study has one validation set and evaluation protocol, one version of the code, and one baseline.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations, count

from urepa.core.errors import UserError
from urepa.reports.comparison.excluded_runs import (
    ABSENT,
    Apart,
    add_digests,
    identity,
    select_finished,
    select_newest,
    select_one_code,
    select_one_protocol,
)
from urepa.reports.comparison.read_runs import Run
from urepa.runs.run_folder import parse_overrides

BETWEEN_PAIRS = re.compile(r",\s*(?=[+~]*[\w./@]+=)")  # the commas of KEY=VALUE,KEY=VALUE; a value may be a list
FEWEST_OF_A_LINE, FEWEST_OF_A_GRID = 3, 2  # values of a swept setting; arms in a row or column of a grid


@dataclass(frozen=True)
class Change:
    """One setting in which an arm differs from the baseline."""

    key: str
    baseline: str
    here: str

    def __str__(self) -> str:
        return f"{self.key}: {self.baseline} → {self.here}"


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed, by seed."""

    label: str
    config: dict[str, str]
    runs: dict[int, Run]
    changes: tuple[Change, ...]

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    def has(self, key: str) -> bool:
        """Whether any seed has logged the metric."""
        return any(key in run.curves for run in self.runs.values())


@dataclass(frozen=True)
class ComparedArms:
    """The arms of a study: the baseline first, then the others in order."""

    arms: tuple[Arm, ...]
    apart: tuple[Apart, ...]
    why_baseline: str

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    def reference_arm(self, key: str) -> Arm:
        """The arm against which the others' values of a metric are checked for comparability: the baseline or, if it
        lacks the metric, the first arm that has it. For example, a baseline without alignment has no token loss."""
        return next((arm for arm in self.arms if arm.has(key)), self.baseline)


def group_runs(runs: list[Run], order: list[str], baseline: str | None, names: Sequence[str] = ()) -> ComparedArms:
    """Groups runs into the arms of a study. `names` gives arms a label: each entry is LABEL=FOLDER, where the runs are
    FOLDER/seed.... Raises UserError if no run can be compared, if `baseline` matches no arm or several, or if a FOLDER
    has no run."""
    given = _given_labels(names, runs)
    usable, apart = select_finished(runs)
    if not usable:
        raise UserError(f"none of the {len(runs)} runs can be compared: {apart[0].run.name} is {apart[0].reason}")
    usable = add_digests(usable)
    meant = [run for run in usable if baseline is not None and _matches_name(run, baseline, given)]
    leading = meant if meant else _main_group(usable)
    usable, others = select_one_protocol(usable, leading)
    apart += others
    leading = [run for run in leading if run in usable]
    usable, others = select_one_code(usable, leading)
    apart += others
    usable, others = select_newest(usable)
    apart += others
    by_config: dict[Hashable, list[Run]] = {}
    for run in usable:
        by_config.setdefault(tuple(sorted(identity(run.config).items())), []).append(run)
    groups = list(by_config.values())
    labels = _make_unique(_labels(groups) | _labels_of_groups(groups, given))
    groups.sort(key=lambda g: _place(g[0], labels[g[0].id], order))
    chosen, why = (
        _choose_baseline(groups, labels, baseline, given) if baseline is not None else _find_baseline(groups, leading)
    )
    among = varying_keys([g[0].config for g in groups])
    arms = [
        Arm(
            labels[g[0].id],
            g[0].config,
            {run.seed: run for run in sorted(g, key=lambda run: run.seed)},
            tuple(changes(chosen[0].config, g[0].config, among)),
        )
        for g in [chosen, *(g for g in groups if g is not chosen)]
    ]
    return ComparedArms(tuple(arms), tuple(apart), why)


# --- config differences -------------------------------------------------------------------------------------


def varying_keys(configs: list[dict[str, str]]) -> list[str]:
    """The settings in which the configs differ. Settings that exist only with one choice of a part (`x._target_`) are
    left out, because the choice itself is already listed."""
    identities = [identity(config) for config in configs]
    keys = sorted(set().union(*identities))
    differ = [k for k in keys if len({config.get(k) for config in identities}) > 1]
    exchanged = {k.removesuffix("_target_") for k in differ if k.endswith("._target_")}

    return [k for k in differ if k.endswith("._target_") or not _follows_part(k, identities, exchanged)]


def _drop_shared_settings(configs: list[dict[str, str]]) -> list[dict[str, str]]:
    """The configs without the settings that have the same value in all of them."""
    shared = set.intersection(*(set(config.items()) for config in configs))
    return [{k: v for k, v in config.items() if (k, v) not in shared} for config in configs]


def _follows_part(key: str, configs: list[dict[str, str]], exchanged: set[str]) -> bool:
    """Whether the key has one value wherever it exists and is absent exactly where another part is chosen."""
    if len({config[key] for config in configs if key in config}) > 1:
        return False
    return any(key.startswith(part) and not _is_partly_set(key, part, configs) for part in exchanged)


def _is_partly_set(key: str, part: str, configs: list[dict[str, str]]) -> bool:
    """Whether, among configs with the same part, some have the key and others do not."""
    there: dict[str | None, set[bool]] = {}
    for config in configs:
        there.setdefault(config.get(f"{part}_target_"), set()).add(key in config)
    return any(len(having) > 1 for having in there.values())


def changes(baseline: dict[str, str], config: dict[str, str], among: list[str]) -> list[Change]:
    """The settings that `config` changes relative to `baseline`. A setting that exists only because another part was
    chosen is listed if it varies among the arms: next to a baseline without alignment, each arm has its own λ."""
    keys = varying_keys([baseline, config])
    keys += [key for key in among if key not in keys and key in config and key not in baseline]
    return [Change(k.removesuffix("._target_"), _short(k, baseline), _short(k, config)) for k in sorted(keys)]


def _short(key: str, config: dict[str, str]) -> str:
    """A value as shown to the reader: a part as the last word of its _target_, an integral number without ".0"."""
    value = config.get(key, ABSENT)
    return value.rpartition(".")[2] if key.endswith("._target_") else value.removesuffix(".0")


# --- names and order ----------------------------------------------------------------------------------------


def _labels(groups: list[list[Run]]) -> dict[str, str]:
    """A label for the first run of each group: its ablation and, if several groups have it, what differs."""
    several = len({g[0].experiment for g in groups}) > 1
    by_name: dict[tuple[str, str], list[Run]] = {}
    for g in groups:
        by_name.setdefault((g[0].experiment, g[0].ablation), []).append(g[0])
    labels = {}
    for (experiment, ablation), runs in by_name.items():
        configs = [run.config for run in runs]
        keys = varying_keys(configs)
        parts = [key for key in keys if key.endswith("._target_")]
        for run in runs:
            said = [k for k in keys if not _is_of_another_part(k, run.config, configs, parts)]
            words = [f"{_word(k)}={_short(k, run.config)}" for k in said]
            named = [] if ablation == "baseline" and words else [ablation]
            labels[run.id] = _one_line((f"{experiment}: " if several else "") + ", ".join(named + words))
    return labels


def _given_labels(names: Sequence[str], runs: list[Run]) -> dict[str, str]:
    """Labels by folder of an arm's runs. Raises UserError for an entry that is not LABEL=FOLDER of an arm."""
    given = {}
    for name in names:
        label, equals, folder = name.partition("=")
        if not label or not equals:
            raise UserError(f"names: '{name}' is not LABEL=FOLDER; give the folder of an arm's runs, without its seed")
        if not any(_folder(run) == folder for run in runs):
            raise UserError(f"names: no run here lies in a folder '{folder}'; give one as {_folder(runs[0])}")
        given[folder] = _one_line(label)
    return given


def _folder(run: Run) -> str:
    """The folder of the run's arm: the run's name without its seed."""
    return run.name.rpartition("/")[0]


def _labels_of_groups(groups: list[list[Run]], given: dict[str, str]) -> dict[str, str]:
    """The labels given by the user, by the id of the first run of each group that has one."""
    found = {g[0].id: next((given[_folder(run)] for run in g if _folder(run) in given), None) for g in groups}
    return {run_id: label for run_id, label in found.items() if label is not None}


def _is_of_another_part(key: str, config: dict[str, str], configs: list[dict[str, str]], parts: list[str]) -> bool:
    """Whether no config with the same part as this one has the key. Its absence then follows from the part's name.
    `parts` are the `_target_` keys of the parts that differ between configs."""
    targets = [k for k in parts if key.startswith(k.removesuffix("_target_"))]
    return any(not any(key in c for c in configs if c.get(k) == config.get(k)) for k in targets if k != key)


def _make_unique(labels: dict[str, str]) -> dict[str, str]:
    """The labels, with a number appended to duplicates, because results are stored by label."""
    taken: set[str] = set()
    different = {}
    for id_, label in labels.items():
        candidates = (label if i == 1 else f"{label} ({i})" for i in count(1))
        different[id_] = next(text for text in candidates if text not in taken)
        taken.add(different[id_])
    return different


def _one_line(text: str) -> str:
    """The text without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _word(key: str) -> str:
    """The shortest part of a key that is understandable next to its value."""
    return key.removesuffix("._target_").rpartition(".")[2]


def _place(run: Run, label: str, order: list[str]) -> tuple:
    """The sort key of an arm: its position in the given order of labels and ablations, then the numbers in its
    label."""
    listed = next((order.index(name) for name in (label, run.ablation) if name in order), len(order))
    return listed, run.experiment, [_number_or_text(part) for part in label.replace(",", "=").split("=")]


def _number_or_text(part: str) -> tuple[int, float, str]:
    try:
        return 0, float(part), ""
    except ValueError:
        return 1, 0.0, part


def _matches_name(run: Run, wanted: str, given: dict[str, str]) -> bool:
    """Whether `wanted` is the label given to this run's folder, its ablation, or a list KEY=VALUE,... in which every
    pair is in the run's command or in its config."""
    if wanted in (given.get(_folder(run)), run.ablation):
        return True
    typed = parse_overrides(BETWEEN_PAIRS.split(run.tags.get("arm", "")))
    pairs = BETWEEN_PAIRS.split(wanted)
    return all("=" in pair for pair in pairs) and all(
        any(_equal(value.strip(), there.get(key.strip(), ABSENT)) for there in (typed, run.config))
        for key, value in parse_overrides(pairs).items()
    )


def _equal(wanted: str, value: str) -> bool:
    """Whether the values are equal as text or as numbers (0 equals 0.0)."""
    return _number_or_text(wanted) == _number_or_text(value)


# --- the baseline -------------------------------------------------------------------------------------------


def _main_group(runs: list[Run]) -> list[Run]:
    """The runs of the experiment and length with the most steps in total; on a tie, the newest. This prevents short
    trials from being chosen as the baseline."""
    families: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        families.setdefault(_family(run), []).append(run)
    return max(families.values(), key=lambda own: (sum(_steps(run) for run in own), max(run.started for run in own)))


def _family(run: Run) -> tuple[str, str]:
    return run.experiment, run.config.get("trainer.max_steps", ABSENT)


def _steps(run: Run) -> int:
    return int(run.config.get("trainer.max_steps", "0"))


def _choose_baseline(
    groups: list[list[Run]], labels: dict[str, str], wanted: str, given: dict[str, str]
) -> tuple[list[Run], str]:
    """The group of runs that `baseline=` names."""
    found = [g for g in groups if labels[g[0].id] == wanted] or [
        g for g in groups if any(_matches_name(run, wanted, given) for run in g)
    ]
    if len(found) == 1:
        return found[0], "chosen with baseline="
    there = "; ".join(labels[g[0].id] for g in (found or groups)[:12])
    problem = "fits several arms" if found else "names no arm"
    raise UserError(f"baseline={wanted} {problem}: {there}; give an ablation's name, or KEY=VALUE,KEY=VALUE as typed")


def _find_baseline(groups: list[list[Run]], leading: list[Run]) -> tuple[list[Run], str]:
    """The baseline's group and the reason for the choice. Among the arms of the main experiment and length it is the
    arm named as a baseline, else the control with λ = 0, else the arm from which most arms differ in one setting."""
    if len(groups) == 1:
        return groups[0], "the only arm"
    ids = {run.id for run in leading}
    own = [g for g in groups if any(run.id in ids for run in g)] or groups  # empty if newer runs repeat all of them
    experiment, steps = _family(own[0][0])
    among = "" if len(own) == len(groups) else f", of the {len(own)} arms of {experiment} with {steps} steps"
    named = [g for g in own if g[0].ablation == "baseline"]
    if len(named) == 1:
        return named[0], f"the arm named so{among}"
    candidates = named or own
    controls = [g for g in candidates if _equal("0", g[0].config.get("loss.lambda_max", ABSENT))]
    if len(controls) == 1:
        return controls[0], f"the control with λ = 0{among}"
    candidates = controls or candidates
    narrow = dict(zip((g[0].id for g in own), _drop_shared_settings([g[0].config for g in own]), strict=True))
    near = [sum(len(varying_keys([narrow[g[0].id], narrow[o[0].id]])) == 1 for o in own) for g in candidates]
    why = "of the controls with λ = 0 the one" if controls else "the one"
    why += " that most arms differ from in one setting alone"
    if near.count(max(near)) > 1:
        why += "; of several such arms the first"
    return candidates[near.index(max(near))], why + among


# --- sweeps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Arms that differ from each other only in one or two numbers. `arms` is indexed by the values of `keys`. With two
    keys some combinations may be missing, but every row and column has at least two arms."""

    keys: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    arms: dict[tuple[float, ...], Arm]


def sweeps(study: ComparedArms) -> list[Sweep]:
    """Grids over two settings (2x2 or larger), and lines over one setting (three values or more) that are part of no
    grid. Those that contain the baseline are preferred; without one, the largest."""
    keys = [key for key in varying_keys([arm.config for arm in study.arms]) if _is_number(key, study.arms)]
    grids = [found for pair in combinations(keys, 2) if (found := _find_sweep(study, pair))]
    in_grids = {key for grid in grids for key in grid.keys}
    lines = [found for key in keys if key not in in_grids and (found := _find_sweep(study, (key,)))]
    return grids + lines


def _find_sweep(study: ComparedArms, keys: tuple[str, ...]) -> Sweep | None:
    """The sweep over `keys`: the arms that differ in no other setting."""
    families: dict[Hashable, dict[tuple[float, ...], Arm]] = {}
    for arm in study.arms:
        if all(key in arm.config for key in keys):
            rest = tuple(sorted((k, v) for k, v in identity(arm.config).items() if k not in keys))
            families.setdefault(rest, {})[tuple(float(arm.config[key]) for key in keys)] = arm
    found = [sweep for arms in families.values() if (sweep := _build_sweep(keys, arms))]
    return max(found, key=lambda sweep: (study.baseline in sweep.arms.values(), len(sweep.arms)), default=None)


def _build_sweep(keys: tuple[str, ...], arms: dict[tuple[float, ...], Arm]) -> Sweep | None:
    values = tuple(tuple(sorted({at[i] for at in arms})) for i in range(len(keys)))
    if len(keys) == 1:
        return Sweep(keys, values, arms) if len(arms) >= FEWEST_OF_A_LINE else None
    along = [sum(at[i] == value for at in arms) for i in range(2) for value in values[i]]
    if min(along) < FEWEST_OF_A_GRID:
        return None
    # the setting with more values comes first: it is the x axis
    if len(values[0]) < len(values[1]):
        return Sweep(keys[::-1], values[::-1], {at[::-1]: arm for at, arm in arms.items()})
    return Sweep(keys, values, arms)


def _is_number(key: str, arms: tuple[Arm, ...]) -> bool:
    return all(_number_or_text(arm.config[key])[0] == 0 for arm in arms if key in arm.config)
