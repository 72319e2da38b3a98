"""What can be said about a composed config before torch loads: impossible numbers and keys without effect."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from math import inf
from typing import Any

from urepa.errors import UserError
from urepa.nested import flatten
from urepa.runs import parse_overrides

TINY = 1e-12
# Lowest and highest value of a number, by dotted key; patterns as in a shell.
RANGES: dict[str, tuple[float, float]] = {
    "trainer.max_steps": (1, inf),
    "trainer.batch_size": (1, inf),
    "trainer.accumulation": (1, inf),
    "trainer.*_every": (1, inf),
    "trainer.validation_group": (1, inf),
    "trainer.keep_last": (1, inf),
    "trainer.max_skipped": (1, inf),
    "trainer.threads": (1, inf),
    "trainer.clip_norm": (TINY, inf),
    "loss.lambda_max": (0, inf),
    "loss.warmup_steps": (0, inf),
    "loss.manifold_weight": (0, inf),
    "loss.manifold_clip": (0, inf),
    "optimizer.lr.*": (0, inf),
    "optimizer.weight_decay.*": (0, inf),
    "optimizer.eps": (0, inf),
    "optimizer.warmup_ratio": (0, 1),
    "objective.beta_*": (TINY, 1 - TINY),
    "objective.timesteps": (1, inf),
    "batch_size": (1, inf),
    "data.limit": (1, inf),
    "data.*_images": (1, inf),
    "data.image_size": (1, inf),
    "data.unshuffle": (1, inf),
    "data.channels": (1, inf),
    "data.scale": (TINY, inf),
    "data.num_classes": (1, inf),
    "data.cfg_dropout": (0, 1),
    "data.max_skipped": (0, 1),
    "backbone.layers_per_block": (1, inf),
    "backbone.cross_attention_dim": (1, inf),
    "backbone.head_dim": (1, inf),
    "lora.dropout": (0, 1 - TINY),
    "lora.alpha": (1, inf),
    "evaluation.samples.per_class": (1, inf),
    "evaluation.samples.shown_per_class": (1, inf),
    "evaluation.samples.max_classes": (1, inf),
    "evaluation.samples.sampler_steps": (1, inf),
    "evaluation.samples.knn": (1, inf),
    "evaluation.probe.timestep": (0, inf),
    "evaluation.probe.knn": (1, inf),
    "evaluation.probe.*_images": (1, inf),
}


def check(config: dict[str, Any], overrides: list[str]) -> None:
    """Raises UserError on the first mistake."""
    check_order(overrides)
    check_effects(config, list(parse_overrides(overrides)))
    check_ranges(config)
    check_trainer(config["trainer"], int(os.environ.get("WORLD_SIZE", "1")))


def check_order(overrides: list[str]) -> None:
    """Hydra 1.3 silently loses an arm that is written before its experiment."""
    groups = [o.lstrip("+").partition("=")[0] for o in overrides]
    if "ablation" in groups and "experiment" in groups[groups.index("ablation") :]:
        raise UserError("+ablation before +experiment would be lost: write +experiment=... first, then +ablation=...")


def check_effects(config: dict[str, Any], given: list[str]) -> None:
    """A key that was given but changes nothing in this composition is a mistake, not a no-op."""
    without_loss = config["loss"]["_target_"].endswith("DiffusionOnly")
    idle = ("head", "teacher", "optimizer.lr.head", "optimizer.weight_decay.head") if without_loss else ()
    if "loss.taps" in given:
        raise UserError(
            "loss.taps={...} would only add to the taps there are: write +loss.taps.NAME=WEIGHT to add one, "
            "~loss.taps.NAME to drop one"
        )
    for key in given:
        if any(key == k or key.startswith(f"{k}.") for k in idle):
            raise UserError(f"{key} has no effect with loss=none, which has neither teacher nor head; drop it")


def check_numbers(config: dict[str, Any]) -> None:
    """Numbers that are out of their range, in any door's config."""
    for key, value in flatten(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for pattern, (low, high) in RANGES.items():
            if fnmatch(key, pattern) and not low <= value <= high:
                least = "more than 0" if low == TINY else f"{low:g} or more"
                most = "" if high == inf else ", less than 1" if high < 1 else f", at most {high:g}"
                raise UserError(f"{key}={value}: give {least}{most}")


def check_ranges(config: dict[str, Any]) -> None:
    """Numbers that cannot be."""
    check_numbers(config)
    betas = config["optimizer"]["betas"]
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"optimizer.betas={betas}: give two numbers from 0 up to, but not including, 1")
    last = config["objective"].get("timesteps", inf) - 1
    probe = config["evaluation"].get("probe", {}).get("timestep", 0)
    if probe > last:
        raise UserError(f"evaluation.probe.timestep={probe}: the objective's last timestep is {last}")


def check_trainer(trainer: dict[str, Any], world: int) -> None:
    """A global batch that does not divide."""
    parts = world * trainer["accumulation"]
    if trainer["batch_size"] % parts:
        raise UserError(
            f"trainer.batch_size={trainer['batch_size']} does not divide into {world} processes x "
            f"trainer.accumulation={trainer['accumulation']}; give a multiple of {parts}"
        )
