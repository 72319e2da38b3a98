"""`python -m urepa.generate run=FOLDER [classes=[...]] [n=...]`: images of a run, one PNG each, and a labelled grid.

The same command goes on where it was stopped. On several GPUs: `torchrun --nproc_per_node=8 -m urepa.generate ...`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.doors import CONF, one_line_mistakes, open_door, prepare
from urepa.errors import UserError
from urepa.runs import plain, require_config

LEAST = {"n": 1, "steps": 1, "batch_size": 1, "seed": 0}


@hydra.main(config_path=CONF, config_name="generate", version_base="1.3")
def main(config: DictConfig) -> None:
    """One set of images. What can be said about it without torch is said first."""
    with one_line_mistakes():
        asked = checked(plain(config))
        from urepa.image_set import generate

        generate(asked)


def checked(asked: dict[str, Any]) -> dict[str, Any]:
    """The request with its classes spelled out, in order; a UserError where the run cannot answer it."""
    if asked["run"] is None:
        raise UserError("say which run: python -m urepa.generate run=outputs/NAME/seed0")
    for key, least in LEAST.items():
        if asked[key] < least:
            raise UserError(f"{key}={asked[key]}: give {least} or more")
    if not (math.isfinite(asked["guidance"]) and asked["guidance"] >= 0):
        raise UserError(f"guidance={asked['guidance']}: give 0 or more")
    config = require_config(Path(asked["run"]))
    timesteps, count = config["objective"]["timesteps"], config["data"]["num_classes"]
    if asked["steps"] > timesteps:
        raise UserError(f"steps={asked['steps']}: this run has {timesteps} timesteps; give as many or fewer")
    if asked["against"] is not None and config["backbone"].get("weights", "random") == "random":
        raise UserError("against=base: this run's backbone began with random weights, so there is no base model")
    classes = list(range(count)) if asked["classes"] is None else sorted(set(asked["classes"]))
    if not classes:
        raise UserError("classes=[]: give at least one, or leave it out for all")
    wrong = [c for c in classes if not 0 <= c < count]
    if wrong:
        raise UserError(f"classes: there is no class {wrong[0]}; this run's are 0 to {count - 1}")
    return asked | {"classes": classes}


if __name__ == "__main__":
    prepare()
    open_door(main, "generate")
