"""Hydra's launcher for commands that take run=FOLDER: with `-m` it runs one job after another in this process."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from hydra.core.utils import JobReturn, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from urepa.core.one_line_errors import ReportedError, print_error


class InTurn(Launcher):
    """Like Hydra's basic launcher, except that the others still run if one fails. Failures are listed at the end, and
    the exit code is then 1."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs in order. Called by Hydra's sweeper."""
        setup_globals()
        done: list[JobReturn] = []
        failures: list[str] = []
        same = set.intersection(*(set(own) for own in job_overrides)) if len(job_overrides) > 1 else set()
        for i, overrides in enumerate(job_overrides):
            name = " ".join(o for o in filter_overrides(overrides) if o not in same)
            print(f"[{i + 1}/{len(job_overrides)}] {name}", flush=True)
            try:
                done.append(self._run(overrides, initial_job_idx + i))
            except ReportedError as said:
                failures.append(f"{name}: {said.text}")
            except Exception as error:  # noqa: BLE001  the other runs do not depend on this one
                traceback.print_exc()
                failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
        if failures:
            print_error(f"{len(failures)} of {len(job_overrides)} failed, the others are done:")
            for failure in failures:
                print_error(failure)
            sys.exit(1)
        return done

    def _run(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Runs one job. Raises any exception of its task."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        returned = run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        _ = returned.return_value
        return returned
