"""`python -m urepa.train`: composes, trains, validates and evaluates a run; the same command resumes it."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.cluster.conf_copy import with_conf_copy
from urepa.core import ranks
from urepa.core.memory_errors import memory_errors
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import remove_empty, to_plain
from urepa.training.checks.combinations import check
from urepa.training.checks.inputs import check_run_inputs
from urepa.training.checks.sweep_points import with_checked_runs


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Trains one run. torch is imported only here, so that --help and config errors are fast."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    folder, overrides = hydra_config.runtime.output_dir, list(hydra_config.overrides.task)
    with one_line_mistakes():
        try:
            ranks.adopt_slurm()
            parts = to_plain(config)
            check(parts, overrides)
            check_run_inputs(parts, Path(folder))
            from urepa.training.run_lifecycle import Session

            with memory_errors():
                Session(config, folder, overrides, choices=dict(hydra_config.runtime.choices)).run()
        finally:
            remove_empty(Path(folder))  # created by Hydra even if the command is refused


if __name__ == "__main__":
    prepare()
    run_command(with_conf_copy(with_checked_runs(main)), "train")
