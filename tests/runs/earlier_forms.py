"""Configs as earlier versions stored them."""

from __future__ import annotations

from typing import Any

from urepa.runs.upgrades import DECLARED, PLACES

ENCODERS = (
    "+experiment=cifar10",
    "evaluation=[generation,knn]",
    "+teacher@evaluation.generation.encoders.dino=dinov2_b",
)


def without(config: Any, *keys: str) -> Any:
    """The config as a version without these keys stored it."""
    if not isinstance(config, dict):
        return config
    kept = {key: without(value, *keys) for key, value in config.items() if key not in keys}
    return kept | {"_target_": called(kept["_target_"])} if keys and "_target_" in kept else kept


def called(target: str) -> str:
    """A part's name before the package was divided into folders."""
    undeclared = {since: before for before, since in DECLARED.items()}
    module, _, name = undeclared.get(target, target).rpartition(".")
    module = module.replace("efficientnet_lite0", "efficientnet")
    before = {since: before for before, since in PLACES.items()}
    return f"{before.get(module, module)}.{name}"
