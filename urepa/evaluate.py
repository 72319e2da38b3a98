"""`python -m urepa.evaluate run=FOLDER [evaluation=[NAME,...]]`: repeats a finished run's evaluation, or does others,
on its EMA weights. Results are added to metrics.jsonl, summary.json and MLflow, as those of the run. If one evaluation
fails (missing weights, for example), the others still run; it is reported at the end, and the exit code is 1."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from urepa.cli import CONF, prepare, run_command
from urepa.cluster.conf_copy import with_conf_copy
from urepa.config.declared import declaration_of
from urepa.config.ranges import check_numbers
from urepa.core.errors import UserError
from urepa.core.nested_dicts import move_paths
from urepa.core.one_line_errors import one_line_mistakes
from urepa.core.run_protocols import Tracker
from urepa.core.track_protocols import Track
from urepa.runs.run_folder import require_config, to_plain
from urepa.runs.summary import is_finished, read_summary
from urepa.training.checks.combinations import check_chosen, check_times
from urepa.training.checks.inputs import check_evaluation_inputs


@hydra.main(config_path=CONF, config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    """Evaluates one run. All checks that do not need torch come first."""
    with one_line_mistakes():
        asked = to_plain(config)
        settings = evaluation_config(asked)
        from urepa.training.run_lifecycle import Session

        Session(OmegaConf.create(settings), folder=asked["run"], overrides=[], choices={}).evaluate()


def evaluation_config(asked: dict[str, Any]) -> dict[str, Any]:
    """The finished run's config with the requested evaluation. Raises UserError if it cannot be evaluated."""
    if asked["run"] is None:
        raise UserError("say which run: python -m urepa.evaluate run=outputs/NAME/seed0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("an evaluation is one process: start it without torchrun")
    path = Path(asked["run"])
    config = require_config(path)
    end, summary = config["trainer"]["max_steps"], read_summary(path)
    if not is_finished(summary, end):
        raise UserError(f"run={path} is not finished: train it to its last step, {end}, with the command that began it")
    given = {part: asked[part] for part in ("evaluation", "tracking") if asked[part] is not None}
    check_chosen({"evaluation": {}} | given)
    check_numbers(given)  # not the run's own settings: limits may have changed since
    config |= given
    if not config["evaluation"]:
        raise UserError(
            f"run={path} was trained with evaluation=none: choose some, evaluation=[NAME,...], of those that "
            "`python -m urepa.evaluate --help` lists"
        )
    if asked["data"]["root"] is not None:
        config = move_paths(config, config["data"]["root"], asked["data"]["root"])
    track: Track = declaration_of(config["data"])
    config["data"] |= track.without_making  # uses the caches that it was trained on, or none
    check_times(config)
    check_evaluation_inputs(config)
    tracker: Tracker = declaration_of(config["tracking"])
    tracker.check_place(path)
    if asked["tracking"] is None:
        tracker.check_trusted(path)
    return config


if __name__ == "__main__":
    prepare()
    run_command(with_conf_copy(main), "evaluate")
