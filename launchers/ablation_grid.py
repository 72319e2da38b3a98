"""A whole study as dependent jobs: caches, their check, every arm with every seed, evaluation, comparison.

    python -m launchers.ablation_grid +experiment=track_a data.root=DIR cluster=slurm cluster.partition=gpu dry_run=true
    python -m launchers.ablation_grid study=which_choice data.source=folder data.images=DIR seeds=0,1,2

Its own keys are those of `urepa.config.command_schemas.AblationGrid`. All other arguments are passed to the runs, as to
`python -m urepa.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from launchers import code_copy
from launchers.dependent_jobs import LocalChain, SlurmChain
from launchers.named_studies import comparisons, rows_of, runs_of_study
from launchers.study import PlannedRun, add_arguments, runs_of, stages_of
from launchers.study_hours import plan_configs, training_hours
from urepa.cli import CONF, prepare
from urepa.cluster.hydra_launchers import prepare_trackers
from urepa.config.command_line import check_arguments, check_options, quote_argument
from urepa.config.command_schemas import AblationGrid
from urepa.config.help import HELP, help_text
from urepa.config.mistyped_keys import error_message
from urepa.config.own_package import take_folder
from urepa.config.ranges import check_numbers
from urepa.core import safe_output
from urepa.core.errors import UserError
from urepa.core.files import check_folder_target
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import parse_overrides, to_plain

OWN = tuple(one.name for one in fields(AblationGrid))
LISTS = ("arms", "seeds", "stages")


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the command line, without --config-dir, into the study's own arguments and those of its runs. Raises
    UserError for keys that the study sets itself, and for other flags."""
    if flags := [a for a in arguments if a.startswith("-")]:
        raise UserError(
            f"{flags[0]}: a study takes KEY=VALUE and --config-dir FOLDER, and no other flags; it sweeps by arms= and "
            "seeds="
        )
    own = [a for a in arguments if a.partition("=")[0].split(".")[0] in OWN]
    rest = [a for a in arguments if a not in own]
    for key, instead in (("seed", "seeds=0,1,2"), ("ablation", "arms=a,b,c")):
        if key in parse_overrides(rest):
            raise UserError(f"{key}: a study gives it to its runs; write {instead}")
    return [_with_brackets(a) for a in own], rest


def _with_brackets(argument: str) -> str:
    """Rewrites `arms=a,b` as `arms=[a,b]`."""
    key, _, value = argument.partition("=")
    return f"{key}=[{value}]" if key in LISTS and value[:1] != "[" and value != "null" else argument


def settings_of(own: Sequence[str]) -> dict[str, Any]:
    with initialize_config_dir(CONF, version_base="1.3"):
        return to_plain(compose("ablation_grid", list(own)))


def show_help(own: Sequence[str]) -> None:
    """Prints the help of the study's own keys, with the values that are given."""
    with initialize_config_dir(CONF, version_base="1.3"):
        print(help_text("ablation_grid", compose("ablation_grid", list(own), return_hydra_config=True)))


def select_runs(
    settings: dict[str, Any], study: str, rest: Sequence[str], gpus: int
) -> tuple[list[PlannedRun], list[tuple[str, ...]] | None]:
    """The runs of the named study, or of the arms in conf/ablation, and the arguments of each `compare` command (None:
    one comparison of all runs)."""
    table, arms, seeds = settings["study"], settings["arms"], settings["seeds"]
    if table is None:
        return runs_of(arms, seeds, rest, gpus), None
    runs = runs_of_study(study, table, arms, seeds, rest, gpus)
    return runs, comparisons(table, runs)


def main() -> None:
    """Composes all runs, then submits the jobs."""
    searched, typed = take_folder(sys.argv[1:])
    asked = [quote_argument(a) for a in typed if a not in HELP]
    own, rest = split_arguments(asked)
    if len(asked) < len(typed):
        show_help(own)
        return
    check_arguments(own, "ablation_grid")
    check_arguments(rest, "train")
    settings = settings_of(own)
    check_numbers(settings)
    if settings["evaluate"] is not None:
        check_options("evaluation", [settings["evaluate"]])
    if settings["scripts"] is not None:
        check_folder_target("scripts", Path(settings["scripts"]))
    on_slurm = settings["cluster"]["_target_"].endswith("SlurmLauncher")
    gpus, nodes = (settings["cluster"]["gpus"], settings["cluster"]["nodes"]) if on_slurm else (1, 1)
    runs, compared = select_runs(settings, parse_overrides(own).get("study", ""), rest, gpus * nodes)
    if not runs:
        of = "the group ablation" if settings["study"] is None else "the study"
        raise UserError(f"there is no arm to run: give arms=a,b,c of {of}, and seeds=0,1,2")
    stages = stages_of(runs, settings, gpus, compared, nodes)
    add_arguments(stages, searched)
    planned = plan_configs(runs, settings["measured"]) if settings["dry_run"] else {}
    steps = runs[0].config["trainer"]["max_steps"]
    seeds = len(settings["seeds"])
    print(f"{len(runs) // seeds} arms x {seeds} seeds: {len(runs)} runs of {steps} steps", flush=True)
    if settings["study"] is not None:
        print(rows_of(settings["study"], runs), flush=True)
    folder = Path(settings["cluster"]["submitit_folder" if on_slurm else "folder"])
    code = code_copy.commit_folder(folder / "code")
    chain = SlurmChain(settings["cluster"], code) if on_slurm else LocalChain(settings["cluster"], code)
    if settings["dry_run"]:
        chain.show(stages, None if settings["scripts"] is None else Path(settings["scripts"]))
        print(training_hours(runs, planned))
        return
    code_copy.copy_to(code)
    prepare_trackers([run.config["tracking"] for run in runs])
    chain.submit(stages)


if __name__ == "__main__":
    safe_output.make_output_safe()
    prepare()
    with one_line_mistakes():
        try:
            main()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(error_message(error, "train", sys.argv[1:])) from error
