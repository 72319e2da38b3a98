"""A study as jobs: the commands and the dependencies between them.

manifest → shards → verify   per set of caches
train                        a run per arm and seed, after its caches
evaluate                     per run
compare                      after all others, whether or not they succeeded

Hydra's launchers have no dependencies between jobs. A workflow engine (Snakemake, Parsl) was not tried: it would need
the arms, seeds and caches, which are read from the composed configs here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from urepa.cli import CONF
from urepa.cluster.slurm_job import Job
from urepa.config.conf_options import options_of
from urepa.config.declared import declaration_of
from urepa.config.override_text import overrides_between
from urepa.core import progress
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.core.track_protocols import Track
from urepa.runs.run_folder import find_name, to_plain
from urepa.training.checks.combinations import check, check_trainer

STAGES = ("preprocess", "verify", "train", "evaluate", "compare")


@dataclass
class PlannedRun:
    """One arm with one seed."""

    overrides: list[str]
    config: dict[str, Any]
    caches: tuple[str, ...]  # the arguments of urepa.preprocess for the caches that it reads
    arm: str = ""  # the arm's name in a study of conf/study

    @property
    def folder(self) -> Path:
        return Path("outputs") / find_name(self.overrides, self.config["seed"])

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"


@dataclass
class JobGroup:
    """Jobs that can run at the same time, and the jobs on which they depend."""

    name: str
    jobs: list[Job]
    gpus: int
    after: "JobGroup | None" = None  # all of its jobs succeeded; for `each`, its job with the same index
    each: bool = False
    after_any: "list[JobGroup]" = field(default_factory=list)  # all of their jobs have ended, with or without success
    nodes: int = 1  # of each job, with `gpus` on each


def compose_run(overrides: Sequence[str], gpus: int) -> PlannedRun:
    """Composes and checks a run as urepa.train would. Raises UserError or an exception of Hydra's for a mistake."""
    with initialize_config_dir(CONF, version_base="1.3"):
        whole = compose("train", list(overrides), return_hydra_config=True)
        choices = dict(whole.hydra.runtime.choices)
        with open_dict(whole):
            del whole["hydra"]
        config = to_plain(whole)
        check(config, list(overrides))
        check_trainer(config["trainer"], gpus)
        chosen, default = _preprocess_default(choices)
    own = flatten({key: config[key] for key in ("data", "teacher")})
    track: Track = declaration_of(config["data"])
    without = tuple(f"data.{key}." for key in track.not_in_caches)  # a value, or a mapping's values
    known, of_caches = ({k: v for k, v in c.items() if not f"{k}.".startswith(without)} for c in (default, own))
    return PlannedRun(list(overrides), config, (*chosen, *overrides_between(known, of_caches)))


def _preprocess_default(choices: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The choices of `urepa.preprocess` for the parts of a run that caches depend on, and the flat config that they
    compose. The parts may have parts of their own, which are chosen after them."""
    first = (f"data={choices['data']}", f"teacher={choices['teacher']}")
    there = _compose_preprocess(first)[0]
    inner = {key: name for key, name in choices.items() if re.match(r"(?!schema/)[^@]+@(data|teacher)\.", key)}
    more = [f"{'' if key in there else '+'}{key}={name}" for key, name in inner.items() if there.get(key) != name]
    return (*first, *more), _compose_preprocess((*first, *more))[1]


@lru_cache
def _compose_preprocess(chosen: tuple[str, ...]) -> tuple[dict[str, str], dict[str, Any]]:
    """All choices of a composition, and its flat data and teacher."""
    config = compose("preprocess", list(chosen), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    if OmegaConf.is_interpolation(config.data, "num_classes"):  # counted in images, which are the run's
        config.data.num_classes = 0
    return choices, flatten({key: to_plain(config)[key] for key in ("data", "teacher")})


def runs_of(arms: Sequence[str] | None, seeds: Sequence[int], overrides: Sequence[str], gpus: int) -> list[PlannedRun]:
    """Every arm with every seed. Without `arms`, all arms of conf/ablation that fit this experiment."""
    if arms is None:
        compose_run(overrides, gpus)  # a mistake that does not concern arms is reported once
    names = options_of("ablation") if arms is None else arms
    runs: list[PlannedRun] = []
    left_out: list[str] = []
    with progress.bar(names, desc="composing", unit="arm", leave=False, disable=not sys.stderr.isatty()) as each:
        for name in each:
            try:
                run = compose_run([*overrides, f"+ablation={name}"], gpus)
            except (UserError, HydraException) as error:  # Hydra's: the arm replaces a part whose key the command sets
                if arms is not None:
                    raise
                why = f"+ablation={name} does not fit this command: " if isinstance(error, HydraException) else ""
                left_out.append(f"left out: {why}{' '.join(str(error).split())}")
                continue
            runs += [with_seed(run, seed) for seed in seeds]
    print("".join(f"{line}\n" for line in left_out), end="", flush=True)
    return runs


def with_seed(run: PlannedRun, seed: int) -> PlannedRun:
    """The run of the same arm with this seed."""
    return replace(run, overrides=[*run.overrides, f"seed={seed}"], config=run.config | {"seed": seed})


def stages_of(
    runs: Sequence[PlannedRun],
    settings: dict[str, Any],
    gpus: int,
    compared: Sequence[tuple[str, ...]] | None = None,
    nodes: int = 1,
) -> list[JobGroup]:
    """The stages of a study, in an order in which they can be submitted. `settings`: conf/ablation_grid.yaml.
    `compared`: the arguments of each comparison; None: one of all runs. A training takes `gpus` on each of `nodes`."""
    wanted = settings["stages"]
    unknown = sorted(set(wanted) - set(STAGES))
    if unknown:
        raise UserError(f"stages: there is no {', '.join(unknown)}; choose of {', '.join(STAGES)}")
    stages: list[JobGroup] = []
    built: dict[tuple[str, str], tuple[set[str], JobGroup]] = {}
    for caches, own in _group_by_caches(runs).items():
        ready = None
        if "preprocess" in wanted:
            ready = _preprocess(stages, caches, own[0].config["data"], settings["shards"], built)
        if "verify" in wanted:
            ready = JobGroup("verify", [_cache_job("verify", caches, "verify")], 0, ready)
            stages.append(ready)
        train = None
        if "train" in wanted:
            jobs = [Job(r.name, (("urepa.train", *r.overrides),), str(r.folder.absolute())) for r in own]
            train = JobGroup("train", jobs, gpus, ready, nodes=nodes)
            stages.append(train)
        if "evaluate" in wanted and (settings["evaluate"] is not None or own[0].config["evaluation"]):
            stages += _evaluate(own, settings["evaluate"], train)
    if "evaluate" in wanted and not any(stage.name == "evaluate" for stage in stages):
        print("evaluate: left out, the runs have evaluation=none; evaluate=NAME chooses one of conf/evaluation")
    if "compare" in wanted:
        names = ",".join(f"'{run.name}'" for run in runs)
        commands = [(f"ids=[{names}]",)] if compared is None else compared
        job = Job("compare", tuple(("urepa.compare", *arguments) for arguments in commands))
        stages.append(JobGroup("compare", [job], 0, after_any=stages[:]))
    return stages


def add_arguments(stages: Sequence[JobGroup], arguments: Sequence[str]) -> None:
    """Appends these arguments to every command of every job."""
    for stage in stages:
        stage.jobs = [
            replace(job, commands=tuple((*command, *arguments) for command in job.commands)) for job in stage.jobs
        ]


def _group_by_caches(runs: Sequence[PlannedRun]) -> dict[tuple[str, ...], list[PlannedRun]]:
    """Groups runs by the caches that they read, the largest track first, because smaller tracks in the same folder are
    parts of it."""

    def size(run: PlannedRun) -> float:
        track: Track = declaration_of(run.config["data"])
        stages = track.stages()
        return 0.0 if stages is None else stages.images

    groups: dict[tuple[str, ...], list[PlannedRun]] = {}
    for run in sorted(runs, key=size, reverse=True):
        groups.setdefault(run.caches, []).append(run)
    return groups


def _preprocess(
    stages: list[JobGroup],
    caches: tuple[str, ...],
    data: dict[str, Any],
    shards: int,
    built: dict[tuple[str, str], tuple[set[str], JobGroup]],
) -> JobGroup:
    """Adds the stages that make caches and returns the last one. A small track has one stage; a latent track has a
    manifest, then shards. A track next to a larger one needs only its list of images and, if they are stored elsewhere,
    its tokens and captions."""
    track: Track = declaration_of(data)
    made = track.stages()
    if made is None:
        stages.append(JobGroup("preprocess", [_cache_job("preprocess", caches, "all")], 1))
        return stages[-1]
    tokens, before = built.get(made.place, (set(), None))
    first = made.first if before is None else ("manifest",)
    stages.append(JobGroup("preprocess", [_cache_job("manifest", caches, *first)], 1, before))
    in_shards = [stage for stage in made.sharded if before is None or stage in ("tokens", "text")]
    if in_shards and made.tokens not in tokens:
        own = [(f"shard {i}/{shards}", (*caches, f"shard={i}/{shards}")) for i in range(shards)]
        stages.append(JobGroup("preprocess", [_cache_job(name, a, *in_shards) for name, a in own], 1, stages[-1]))
    built[made.place] = (tokens | {made.tokens}, stages[-1])
    return stages[-1]


def _evaluate(runs: Sequence[PlannedRun], name: str | None, train: JobGroup | None) -> list[JobGroup]:
    """The stage of evaluations, in addition to those at the end of each run."""
    more = () if name is None else (f"evaluation={name}",)
    jobs = [Job(f"evaluate {r.name}", (("urepa.evaluate", f"run='{r.folder}'", *more),)) for r in runs]
    return [JobGroup("evaluate", jobs, 1, train, each=True)]


def _cache_job(name: str, arguments: tuple[str, ...], *stages: str) -> Job:
    commands = tuple(("urepa.preprocess", *arguments, f"stage={stage}") for stage in stages)
    return Job(f"{name} {arguments[0].removeprefix('data=')}", commands)
