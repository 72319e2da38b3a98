"""The settings of Hydra's launchers: `hydra.launcher.KEY` of a sweep and `cluster.KEY` of a study; and those of the
sweeper that searches, `hydra.sweeper.KEY`. Those for SLURM are
the fields of hydra-submitit-launcher, with the meanings that submitit gives them (submitit/slurm/slurm.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from urepa.core.declared_keys import LAST_SEED, SIZE, WORKERS, Key, keys_of, setting

PLUGINS = "hydra_plugins.urepa_launchers"  # Hydra only accepts launchers of this namespace
SEARCH = "hydra_plugins.urepa_sweepers.OptunaSweeper"
PLACES = (("cluster",), ("hydra", "launcher"), ("hydra", "sweeper"))  # where a config has the settings


@dataclass
class Slurm:
    """SLURM, through submitit."""

    _target_: str = f"{PLUGINS}.SlurmLauncher"
    submitit_folder: str = setting("the folder of scripts, logs and notes")
    timeout_min: int = setting("minutes that a job may take; a longer run goes on in the next job", ge=1, le=SIZE)
    cpus_per_task: int | None = setting("CPU cores of each process", ge=1, le=WORKERS)
    gpus_per_node: int | None = setting("sbatch's option of this name, besides gres", None, ge=1, le=SIZE)
    tasks_per_node: int = setting("processes of a run on each node: one a GPU", ge=1, le=SIZE)
    mem_gb: int | None = setting("memory of a job's node, GB; null: the cluster's default", ge=1, le=SIZE)
    nodes: int = setting("nodes of a run, each with `gpus` GPUs", 1, ge=1, le=SIZE)
    name: str = setting("prefix of the jobs' names")
    stderr_to_stdout: bool = setting("one log for both streams", False)
    partition: str | None = setting("null: the cluster's default")
    qos: str | None = setting("quality of service", None)
    comment: str | None = setting("of the jobs", None)
    constraint: str | None = setting("features that the nodes must have", None)
    exclude: str | None = setting("nodes that are not taken", None)
    gres: str | None = setting("generic resources of a job's node: its GPUs")
    cpus_per_gpu: int | None = setting("sbatch's own option", None, ge=1, le=WORKERS)
    gpus_per_task: int | None = setting("sbatch's own option", None, ge=1, le=SIZE)
    mem_per_gpu: str | None = setting("sbatch's own option", None)
    mem_per_cpu: str | None = setting("sbatch's own option", None)
    account: str | None = setting("null: the user's default")
    signal_delay_s: int = setting("seconds from the signal to save (SIGUSR2) to the time limit", ge=0, le=SIZE)
    max_num_timeout: int = setting("largest number of jobs of one run, minus 1", ge=0, le=SIZE)
    additional_parameters: dict[str, Any] = setting("other options of sbatch, by name")
    array_parallelism: int = setting("runs at a time", ge=1, le=SIZE)
    setup: list[str] = setting("lines of the batch script before the run: modules to load, variables to export")
    gpus: int = setting("GPUs of a run on each of its nodes, each with its process", ge=1, le=8)


@dataclass
class Local:
    """Processes on this machine."""

    _target_: str = f"{PLUGINS}.LocalLauncher"
    at_once: int | None = setting("runs at a time; null: one per GPU, or one without GPUs", ge=1, le=WORKERS)
    gpus: list[int] | None = setting("GPUs to use, one per run; null: all", ge=0, le=WORKERS)
    folder: str = setting("the folder of logs")


class Direction(Enum):
    minimize = "minimize"
    maximize = "maximize"


class Algorithm(Enum):
    tpe = "tpe"
    grid = "grid"


@dataclass
class OptunaSearch:
    """A search with Optuna."""

    _target_: str = SEARCH
    metric: str | None = setting("the metric whose best value is searched, a key in summary.json; must be given", None)
    direction: Direction | None = setting("which of its values are better; must be given", None)
    algorithm: Algorithm = setting("tpe: proposals from earlier trials; grid: all combinations of the values")
    trials: int | None = setting("trials in all, with those of earlier starts; null: all of a grid", ge=1, le=SIZE)
    at_once: int = setting("trials that are proposed and started together", ge=1, le=WORKERS)
    seed: int = setting("of the proposals", 0, ge=0, le=LAST_SEED)
    storage: str = setting("Optuna's database: sqlite:///FILE or another URL of SQLAlchemy")
    study: str | None = setting("a name of the search there; null: from the command", None)
    params: dict[str, str] | None = setting("what is searched, besides the command's own: KEY: interval(0,1)", None)


LAUNCHERS: dict[str, type] = {
    f"{PLUGINS}.SlurmLauncher": Slurm,
    f"{PLUGINS}.LocalLauncher": Local,
    SEARCH: OptunaSearch,
}


def launcher_keys(key: str) -> list[str]:
    """The keys of all launchers at the place of this key; empty for keys of other places."""
    places = [".".join(place) for place in PLACES]
    return [
        known.name
        for place in places
        if key.startswith(f"{place}.")
        for schema in LAUNCHERS.values()
        for known in keys_of(schema, f"{place}.")
    ]


def launchers_of(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], list[Key]]]:
    """For each launcher in a config: its place, its settings and its keys."""
    for place in PLACES:
        node: Any = config
        for name in place:
            node = node.get(name) if isinstance(node, dict) else None
        schema = LAUNCHERS.get(node.get("_target_", "")) if isinstance(node, dict) else None
        if schema is not None:
            yield ".".join(place), node, list(keys_of(schema, f"{'.'.join(place)}."))
