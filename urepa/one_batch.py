"""`python -m urepa.one_batch [+experiment=...]`: makes an experiment's first update and prints shapes, devices,
numbers of trainable parameters and losses. It writes no run, and needs the caches as training does."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, is_sweep, prepare, run_command
from urepa.core.errors import UserError
from urepa.core.memory_errors import memory_errors
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import to_plain
from urepa.training.checks.combinations import check
from urepa.training.checks.inputs import check_run_inputs


@hydra.main(config_path=CONF, config_name="one_batch", version_base="1.3")
def main(config: DictConfig) -> None:
    """Prints the tables; the folder of the run is a temporary one."""
    from hydra.core.hydra_config import HydraConfig

    with one_line_mistakes(), memory_errors():
        parts = to_plain(config)
        check(parts, list(HydraConfig.get().overrides.task))
        check_one_run(parts)
        with tempfile.TemporaryDirectory(prefix=".one-batch-") as place:
            check_run_inputs(parts, Path(place))
            from urepa.training.one_update import one_update

            print("\n\n".join(one_update(parts, Path(place))))


def check_one_run(config: dict[str, Any]) -> None:
    """Raises UserError for a stored run or several processes."""
    if config["resume"] is not None:
        raise UserError("one_batch makes the first update of a new run: leave resume out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("one_batch is one process: start it without torchrun")


def one_batch() -> None:
    """The entry of the command. Refuses -m, because the tables describe one run."""
    if is_sweep(sys.argv[1:]):
        raise UserError("one_batch describes one run: leave -m out, and call it for each")
    main()


if __name__ == "__main__":
    prepare()
    run_command(one_batch, "one_batch")
