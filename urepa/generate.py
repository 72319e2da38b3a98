"""`python -m urepa.generate run=FOLDER [classes=[ID,NAME,...]] [n=...]`: images of a run, one PNG each, with a grid.
`python -m urepa.generate checkpoint=FILE +experiment=NAME ...`: the same of published weights, without a run.

The same command goes on where it was stopped. On several GPUs: `torchrun --nproc_per_node=8 -m urepa.generate ...`.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.cluster.conf_copy import with_conf_copy
from urepa.config.command_schemas import Images
from urepa.config.declared import declaration_of
from urepa.config.ranges import check_given, check_numbers
from urepa.core.errors import UserError
from urepa.core.files import check_folder_target
from urepa.core.one_line_errors import one_line_mistakes
from urepa.core.protocols import Objective
from urepa.core.track_protocols import Track
from urepa.data.lists.classes import names_beside
from urepa.inference.chosen_classes import choose_classes, names_of
from urepa.inference.chosen_prompts import check_image, check_negative, choose_prompts
from urepa.inference.chosen_size import choose_shape
from urepa.inference.published_weights import check_name, has_effect
from urepa.runs.run_folder import parse_overrides, require_config, to_plain
from urepa.training import provenance
from urepa.training.checks.combinations import check_declared, check_order

REQUEST = tuple(field.name for field in fields(Images))
ONE_OF_TWO = "python -m urepa.generate run=outputs/NAME/seed0, or checkpoint=FILE +experiment=NAME"


@hydra.main(config_path=CONF, config_name="generate", version_base="1.3")
def generate_from_run(config: DictConfig) -> None:
    """Generates images of a run. All checks that need no torch come first."""
    with one_line_mistakes():
        asked = check_run_request(to_plain(config))
        from urepa.inference.image_request import generate

        generate(asked)


@hydra.main(config_path=CONF, config_name="generate_checkpoint", version_base="1.3")
def generate_from_checkpoint(config: DictConfig) -> None:
    """Generates images of published weights with the composed config."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    with one_line_mistakes():
        asked = check_checkpoint_request(to_plain(config), overrides)
        from urepa.inference.image_request import generate

        generate(asked)


def config_root(arguments: list[str]) -> str:
    """The root config of conf/: runs have a stored config, published weights need a composed one."""
    given = {a.partition("=")[0] for a in arguments if a != "checkpoint=null"}
    return "generate_checkpoint" if "checkpoint" in given else "generate"


def main() -> None:
    """The door of either."""
    arguments = sys.argv[1:]
    if config_root(arguments) == "generate_checkpoint":
        generate_from_checkpoint()
    elif any(a.lstrip("+").startswith("experiment=") for a in arguments):
        raise UserError("experiment= says what published weights are of: give checkpoint=FILE too; a run has its own")
    else:
        generate_from_run()


def check_run_request(asked: dict[str, Any]) -> dict[str, Any]:
    """The request with its classes resolved, in order; UserError if the run cannot fulfil it."""
    if asked["run"] is None:
        raise UserError(f"say which run or checkpoint: {ONE_OF_TWO}")
    check_request(asked)
    config = require_config(Path(asked["run"]))
    if asked["against"] is not None and declaration_of(config["backbone"]).base is None:
        raise UserError("against=base: this run's backbone began with random weights, so there is no base model")
    names = provenance.bucket_names(Path(asked["run"]), declaration_of(config["data"]).bucket_names)
    asked = choose_shape(asked, config, names, "this run")
    kept = provenance.class_names(Path(asked["run"]), config["data"]["num_classes"])
    return resolve_classes(asked, config, "this run", kept)


def check_checkpoint_request(composed: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The same for published weights; `config` holds what describes the weights."""
    given = parse_overrides(overrides)
    asked = {key: composed[key] for key in REQUEST}
    if asked["run"] is not None:
        raise UserError(f"run= and checkpoint= are two models; give one: {ONE_OF_TWO}")
    if asked["checkpoint"] is None:
        raise UserError(f"say which run or checkpoint: {ONE_OF_TWO}")
    check_order(overrides)
    for key in given:
        if key not in REQUEST and not has_effect(key):
            raise UserError(f"{key} has no effect on published weights' images; drop it")
    asked["seed"] = asked["seed"] if "seed" in given else 0  # an experiment's own is its training's
    check_request(asked)
    config = {key: value for key, value in composed.items() if key not in REQUEST}
    config["data"] |= {"images": "none"}  # of a training; no key of what is asked here
    check_declared({part: config[part] for part in ("backbone", "objective", "data")})
    check_given({part: config[part] for part in ("backbone", "objective", "data")})
    check_numbers({part: config[part] for part in ("backbone", "objective", "data")})
    check_name(asked["checkpoint"])
    track: Track = declaration_of(config["data"])
    track.check()
    asked = choose_shape(asked, config, track.bucket_names, "this experiment")
    kept = names_beside(Path(asked["checkpoint"]), config["data"]["num_classes"])
    try:
        answered = resolve_classes(asked, config, "this experiment", kept)
    except UserError as error:
        if "experiment" in given:
            raise
        raise UserError(f"{error} (it is the quickstart: +experiment=NAME says what the weights are of)") from None
    return answered | {"config": config, "given": list(given)}


def check_request(asked: dict[str, Any]) -> None:
    """A UserError where no model could answer it."""
    check_numbers(asked)
    if asked["out"] is not None:
        check_folder_target("out", Path(asked["out"]))
    interval = asked["guidance_interval"]
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise UserError(f"guidance_interval={interval}: give two times, from 0 to 1, the lower one first")


def resolve_classes(asked: dict[str, Any], config: dict[str, Any], whose: str, kept: list[str]) -> dict[str, Any]:
    """The request with the ids of its classes, and all class names as `class_names` (`kept` if the config has none).
    UserError if a model of this config cannot fulfil it."""
    objective: Objective = declaration_of(config["objective"])
    most, count = objective.most_steps, config["data"]["num_classes"]
    if asked["steps"] > most:
        raise UserError(f"steps={asked['steps']}: {whose} has {most} timesteps; give as many or fewer")
    if not objective.has_intervals and asked["guidance_interval"] != [0, 1]:
        raise UserError(f"guidance_interval has no effect on {whose}, which is no flow; drop it")
    check_image(asked, config, whose)
    asked = asked | {"prompts": choose_prompts(asked, config, whose)}
    asked = asked | {"negative": check_negative(asked, whose)}
    if asked["prompts"] is not None:  # their numbers are what classes' ids are elsewhere
        return asked | {"classes": list(range(len(asked["prompts"]))), "class_names": asked["prompts"]}
    names = names_of(config, kept)
    return asked | {"classes": choose_classes(asked["classes"], count, names, whose), "class_names": names}


if __name__ == "__main__":
    prepare()
    run_command(with_conf_copy(main), config_root(sys.argv[1:]))
