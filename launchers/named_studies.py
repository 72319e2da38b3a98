"""Studies of conf/study: a file is a table of arms, each with a name and its changes to the common overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from launchers.study import PlannedRun, compose_run, with_seed
from urepa.config.command_line import check_arguments
from urepa.config.mistyped_keys import error_message
from urepa.core.errors import UserError, did_you_mean
from urepa.runs.identity import differences
from urepa.runs.run_folder import parse_overrides

ARM = r"\w[\w.+-]*"  # names that arms= accepts without quotes


def runs_of_study(
    name: str, table: dict[str, Any], arms: Sequence[str] | None, seeds: Sequence[int], given: Sequence[str], gpus: int
) -> list[PlannedRun]:
    """Every arm with every seed, in the table's order; `arms` selects some. The command's overrides apply to all runs
    and take precedence over the study's common ones; an arm's own overrides take precedence over both. Raises
    UserError, before anything is started, for an unknown arm, an arm that does not compose, and two arms that are the
    same run.

    Args:
        name: of the file in conf/study. table: its content (`urepa.config.command_schemas.Study`).
        given: the command's overrides for the runs.
    """
    _check_table(name, table, given)
    unknown = [arm for arm in arms or [] if arm not in table["arms"]]
    if unknown:
        there = ", ".join(table["arms"])
        near = did_you_mean(unknown[0], list(table["arms"]))
        raise UserError(f"arms: study={name} has no arm '{unknown[0]}'; it has {there}{near}")
    chosen = {arm: own for arm, own in table["arms"].items() if arms is None or arm in arms}
    runs = [_compose_arm(name, arm, [*table["overrides"], *given], own, gpus) for arm, own in chosen.items()]
    for one, other in combinations(runs, 2):
        if not differences(one.config, other.config):
            raise UserError(
                f"study={name}: the arms {one.arm} and {other.arm} are the same run, as the command is given; leave "
                "out the override that both have, or one of them with arms=a,b,c"
            )
    return [with_seed(run, seed) for run in runs for seed in seeds]


def comparisons(table: dict[str, Any], runs: Sequence[PlannedRun]) -> list[tuple[str, ...]]:
    """The arguments of each `urepa.compare` command: one with all arms and the study's baseline, then one for each
    control with its arms. A control that is not among the runs has no comparison. Without the study's baseline,
    `urepa.compare` chooses one among all arms and says why."""
    arms = dict.fromkeys(run.arm for run in runs)
    baseline = (f"baseline='{table['baseline']}'",) if table["baseline"] in arms else ()
    found = [(*_compare_arguments(runs), *baseline)]
    for control in dict.fromkeys(table["controls"].values()):
        own = [run for run in runs if control in (run.arm, table["controls"].get(run.arm))]
        if len({run.arm for run in own}) > 1 and control in arms:
            found.append((*_compare_arguments(own), f"baseline='{control}'", f"report='report_{control}'"))
    return found


def _compare_arguments(runs: Sequence[PlannedRun]) -> tuple[str, str, str]:
    """`ids=`, `names=` and `order=` of `compare` for these runs."""
    folders = {run.arm: run.folder.parent.name for run in runs}
    ids = ",".join(f"'{run.name}'" for run in runs)
    names = ",".join(f"'{arm}={folder}'" for arm, folder in folders.items())
    order = ",".join(f"'{arm}'" for arm in folders)
    return f"ids=[{ids}]", f"names=[{names}]", f"order=[{order}]"


def rows_of(table: dict[str, Any], runs: Sequence[PlannedRun]) -> str:
    """A line for each arm that is run: its name and its changes."""
    arms = dict.fromkeys(run.arm for run in runs)
    width = max(map(len, arms))
    return "\n".join(f"  {arm:<{width}}  {' '.join(table['arms'][arm])}".rstrip() for arm in arms)


def _check_table(name: str, table: dict[str, Any], given: Sequence[str]) -> None:
    """Raises UserError for a file whose rows do not fit together, or a command with another experiment."""
    file = f"conf/study/{name}.yaml"
    named = {"baseline": [table["baseline"]], "controls": [*table["controls"], *table["controls"].values()]}
    for key, arm in ((key, arm) for key, arms in named.items() for arm in arms):
        if arm not in table["arms"]:
            raise UserError(f"{file}: {key}: {arm} is none of its arms{did_you_mean(arm, list(table['arms']))}")
    if wrong := [arm for arm in table["arms"] if not re.fullmatch(ARM, arm)]:
        raise UserError(f"{file}: the arm '{wrong[0]}' needs a name of letters, digits, _, ., + and -")
    rows = {"overrides": table["overrides"]} | table["arms"]
    for row, overrides in rows.items():
        if "seed" in parse_overrides(overrides):
            raise UserError(f"{file}: {row} gives a seed; leave it out, seeds=0,1,2 gives every arm its own")
    own = parse_overrides(table["overrides"])
    if "experiment" in own and "experiment" in parse_overrides(list(given)):
        raise UserError(f"study={name} is of +experiment={own['experiment']}: leave out +experiment")


def _compose_arm(name: str, arm: str, shared: Sequence[str], own: Sequence[str], gpus: int) -> PlannedRun:
    overrides = [*shared, *own]
    try:
        check_arguments(list(own), "train")
        run = compose_run(overrides, gpus)
    except UserError as error:
        raise UserError(f"arm {arm} of study={name}: {error}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"arm {arm} of study={name}: {error_message(error, 'train', overrides)}") from error
    run.arm = arm
    return run
