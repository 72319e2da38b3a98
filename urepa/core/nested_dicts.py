"""Functions on nested dicts."""

from __future__ import annotations

from typing import Any


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict as a flat one with dotted keys. Lists count as values."""
    if not isinstance(config, dict):
        return {prefix: config}
    if not config:
        return {prefix: {}}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def move_paths(config: Any, old: str, new: str) -> Any:
    """The config with every path below the folder `old` moved below `new`."""
    if isinstance(config, dict):
        return {key: move_paths(value, old, new) for key, value in config.items()}
    below = isinstance(config, str) and (config == old or config.startswith(f"{old}/"))
    return new + config[len(old) :] if below else config


def replace_value(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The config with the value of one dotted key replaced."""
    group, _, rest = key.partition(".")
    return config | {group: replace_value(config[group], rest, value) if rest else value}
