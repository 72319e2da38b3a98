"""`python -m urepa.look run=FOLDER`: pictures of a run's tokens and samples on fixed validation images, at any of its
checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.ranges import check_numbers
from urepa.core.errors import UserError
from urepa.core.files import check_file_target
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.checkpoint_folders import no_checkpoint, steps
from urepa.runs.run_folder import require_config, to_plain

ALL, NEWEST = "all", "newest"


@hydra.main(config_path=CONF, config_name="look", version_base="1.3")
def main(config: DictConfig) -> None:
    """Writes a sheet per checkpoint, and a strip over all sheets of the run."""
    with one_line_mistakes():
        asked = to_plain(config)
        chosen = check(asked)
        from urepa.inference.look_at_run import look

        for line in look(asked, chosen):
            print(line, flush=True)


def check(asked: dict[str, Any]) -> list[Path]:
    """The requested checkpoints, oldest first. Raises UserError for mistakes in the request."""
    if asked["run"] is None:
        raise UserError("say which run: python -m urepa.look run=outputs/NAME/seed0")
    check_numbers(asked)
    run = Path(asked["run"])
    require_config(run)
    if len(asked["patch"]) != 2:
        raise UserError(f"patch={asked['patch']}: give two shares, [ROW,COLUMN], as [0.5,0.5] for the middle")
    there = dict(steps(run / "checkpoints"))
    if not there:
        raise no_checkpoint(run)
    step = str(asked["step"])
    if step == ALL:
        chosen = [there[step] for step in sorted(there)]
    elif step == NEWEST:
        chosen = [there[max(there)]]
    elif step.isdecimal() and int(step) in there:
        chosen = [there[int(step)]]
    else:
        known = ", ".join(map(str, sorted(there)))
        raise UserError(f"step={step}: {run} has checkpoints of steps {known}; give one of these, {ALL} or {NEWEST}")
    if asked["out"] is not None:
        if len(chosen) > 1:
            raise UserError(f"out={asked['out']} is one file and step={ALL} makes several; drop one of the two")
        if Path(asked["out"]).suffix != ".png":
            raise UserError(f"out={asked['out']} must be a PNG file: give a name that ends in .png")
        check_file_target("out", Path(asked["out"]))
    return chosen


if __name__ == "__main__":
    prepare()
    run_command(main, "look")
