"""What can be said about a composed config before torch loads: impossible numbers and keys without effect."""

from __future__ import annotations

import os
from typing import Any

from urepa.errors import UserError
from urepa.runs import parse_overrides

AT_LEAST_ONE = (
    "max_steps",
    "batch_size",
    "accumulation",
    "log_every",
    "validate_every",
    "validation_group",
    "checkpoint_every",
    "keep_last",
    "max_skipped",
)


def check(config: dict[str, Any], overrides: list[str]) -> None:
    """Raises UserError on the first mistake."""
    check_order(overrides)
    check_effects(config, list(parse_overrides(overrides)))
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
    for key in given:
        if any(key == k or key.startswith(f"{k}.") for k in idle):
            raise UserError(f"{key} has no effect with loss=none, which has neither teacher nor head; drop it")


def check_trainer(trainer: dict[str, Any], world: int) -> None:
    """Numbers that cannot be, and a global batch that does not divide."""
    for key in AT_LEAST_ONE:
        if trainer[key] < 1:
            raise UserError(f"trainer.{key}={trainer[key]}: give 1 or more")
    if trainer["clip_norm"] is not None and trainer["clip_norm"] <= 0:
        raise UserError(f"trainer.clip_norm={trainer['clip_norm']}: give a positive number, or null for none")
    parts = world * trainer["accumulation"]
    if trainer["batch_size"] % parts:
        raise UserError(
            f"trainer.batch_size={trainer['batch_size']} does not divide into {world} processes x "
            f"trainer.accumulation={trainer['accumulation']}; give a multiple of {parts}"
        )
