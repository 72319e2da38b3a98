"""Hydra's launchers for `-m`: `hydra/launcher=slurm_h200` and `hydra/launcher=local`.

Each run of a sweep is the command that a user would type, in a process of its own. So its folder, error messages,
signals and resuming are the same. The launcher waits for all runs; if one fails, the others still run.

hydra-submitit-launcher is not used: it shows COMPLETED for a job that raised, pickles the composed application instead
of a command, and waits for sacct. Its settings and submitit's batch scripts are used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from urepa.cluster import conf_copy
from urepa.cluster.slurm_and_local import LocalQueue, Outcome, SlurmQueue, print_outcome
from urepa.cluster.slurm_job import Job
from urepa.config.launcher_schemas import Local, OptunaSearch, Slurm
from urepa.core.errors import UserError
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import to_plain

OURS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep", "hydra.run", "hydra.mode")


class JobLauncher(Launcher):
    """Base class of both launchers: one command per run. Waits for all runs."""

    schema: ClassVar[type[Slurm] | type[Local]]

    def __post_init__(self) -> None:
        """Moves the config's fields into `settings`: an attribute `setup` would hide Hydra's method of that name."""
        assert is_dataclass(self)
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_target_"}
        self.settings: dict[str, Any] = {
            k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in values.items()
        }
        vars(self).pop("setup", None)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launches the runs of a sweep and waits for them. Called by Hydra's sweeper."""
        from urepa.config.ranges import check_numbers

        with one_line_mistakes():
            check_numbers({"hydra": {"launcher": self.settings | {"_target_": self.schema._target_}}})
            configs = [self.context.config_loader.load_sweep_config(self.config, list(o)) for o in job_overrides]
            same = set.intersection(*(set(own) for own in job_overrides))
            jobs = [self._job(config, own, same) for config, own in zip(configs, job_overrides, strict=True)]
            prepare_trackers([config.tracking for config in configs])
            for root in caches_to_make(configs):
                print(f"caches in {root} are made first, once: the first run that reads them makes them", flush=True)
            failed = [outcome for outcome in self.outcomes(jobs) if not print_outcome(outcome)]
            if failed:
                names = ", ".join(sorted(outcome.entry.job.name for outcome in failed))
                raise UserError(
                    f"{len(failed)} of {len(jobs)} runs did not finish ({names}); the same command goes on with them"
                )
        return [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]

    @abstractmethod
    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Starts the jobs, and yields the outcome of each as it ends."""

    def _job(self, config: DictConfig, overrides: Sequence[str], same: set[str]) -> Job:
        """A job that is named by the overrides that differ within its sweep."""
        module = f"urepa.{config.hydra.job.config_name}"
        passed_on = [o for o in config.hydra.overrides.hydra if not o.lstrip("+~").startswith(OURS)]
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        conf = next(source.path for source in config.hydra.runtime.config_sources if source.provider == "main")
        command = (module, *overrides, *passed_on, f"hydra.run.dir='{folder}'", conf_copy.FLAG, conf)
        own = " ".join(o for o in overrides if o not in same)
        return Job(own if own else f"{folder.parent.name}/{folder.name}", (command,), str(folder.absolute()))


def prepare_trackers(settings: Sequence[Any]) -> None:
    """Prepares the resources that trackers of simultaneous runs share, each once."""
    from urepa.config.declared import declaration_of  # Hydra imports this module for every command

    seen: list[Any] = []
    for one in settings:
        tracker = declaration_of(to_plain(one) if OmegaConf.is_config(one) else one)
        if tracker not in seen:
            seen.append(tracker)
            tracker.prepare()


def caches_to_make(configs: Sequence[DictConfig]) -> list[str]:
    """The `data.root` of the caches that these runs make before they train, because they are missing."""
    from urepa.config.declared import declaration_of

    found: dict[str, None] = {}
    for config in configs:
        if config.data.get("build_on_first_use"):
            data, teacher, loss = (declaration_of(to_plain(config[part])) for part in ("data", "teacher", "loss"))
            members = teacher.members().values() if loss.taps and not data.online_teacher else ()
            if not (data.has_latents() and all(map(data.has_tokens, members))):
                found[data.root] = None
    return list(found)


@dataclass
class SlurmLauncher(JobLauncher, Slurm):  # type: ignore[misc]  # a setting has the name of Hydra's method
    """Submits the runs as one SLURM array."""

    schema = Slurm

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        queue = SlurmQueue(self.settings)
        queued = queue.find_queued(jobs)
        again = {entry.job for entry in queued}
        new = [job for job in jobs if job not in again]
        if queued:
            print(f"{len(queued)} of {len(jobs)} runs are in SLURM's queue from an earlier start", flush=True)
        if new:
            gpus, nodes = self.settings["gpus"], self.settings["nodes"]
            queued += (submitted := queue.submit(new, gpus, "sweep", nodes=nodes))
            print(f"submitted {len(new)} runs to SLURM as {submitted[0].id} to {submitted[-1].id}", flush=True)
        print(
            f"their logs: {queue.folder}\n"
            "Ctrl-C ends this wait and leaves them running; python -m launchers.status shows where they are",
            flush=True,
        )
        return queue.wait(queued)


@dataclass
class LocalLauncher(JobLauncher, Local):
    """Runs the jobs on this machine, a few at a time."""

    schema = Local

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        queue = LocalQueue(**self.settings)
        print(f"{len(jobs)} runs, {queue.at_once} at a time; their logs: {queue.folder}", flush=True)
        return queue.run(jobs)


def register() -> None:
    """Stores the schemas of the launchers' and the sweeper's settings. Hydra finds these themselves in
    `hydra_plugins/`."""
    store = ConfigStore.instance()
    store.store(group="schema", name="slurm_launcher", node=Slurm)
    store.store(group="schema", name="local_launcher", node=Local)
    store.store(group="schema", name="optuna_sweeper", node=OptunaSearch)
