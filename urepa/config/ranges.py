"""Checks the numbers of a config: each must be finite, and most have a smallest and a largest value."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

from urepa.config.command_schemas import Device
from urepa.config.commands import COMMANDS
from urepa.config.declared import declaration_of
from urepa.config.launcher_schemas import launchers_of
from urepa.config.part_schemas import Trainer
from urepa.config.parts import parts_of, settings_that_are
from urepa.core.declared_keys import INTERVAL, LARGEST, TINY, keys_of
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten

OF_COMMANDS = [
    *(keys_of(command.schema) for command in COMMANDS.values()),
    keys_of(Device, "device."),
    keys_of(Trainer, "trainer."),
]
# smallest and largest value of the numbers that belong to no part, by dotted key
RANGES = {key.name: key.range for keys in OF_COMMANDS for key in keys if key.range is not None}


def check_given(config: dict[str, Any]) -> None:
    """Raises UserError if a command lacks values without a default."""
    missing = [key for key, value in flatten(config).items() if value == "???"]
    if missing:
        asked = " ".join(f"{key}=..." for key in missing)
        raise UserError(f"{' and '.join(missing)} must be given, as there is no default: add {asked}")


def check_numbers(config: dict[str, Any]) -> None:
    """Raises UserError for the first number of a command's config that is not finite or out of its range, and for
    settings of an objective or an optimiser that do not fit together. Stored configs of earlier runs are not
    checked."""
    flat, ranges = flatten(config), RANGES | dict(_ranges_of_parts(config))
    for key, value in flat.items():
        low, high = _range_of(key, ranges)
        for number in _numbers(value):
            if not low <= number <= high:  # NaN is in no range
                raise UserError(f"{key}={value}: give {_range_text(low, high, number)}")
    if "objective" in config:
        declaration_of(config["objective"]).check()
    for key, value in settings_that_are(INTERVAL, config):
        if len(value) != 2 or value[0] > value[1]:
            raise UserError(f"{key}={value}: give two times, the lower one first")
    if "_target_" in config.get("optimizer", {}):
        declaration_of(config["optimizer"]).check()


def _numbers(value: Any) -> Iterator[float]:
    """The number itself, or the numbers in a list."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int | float) and not isinstance(one, bool):
            yield one


def _ranges_of_parts(config: dict[str, Any]) -> Iterator[tuple[str, tuple[float, float]]]:
    """The range of each number that a part of the config, or a launcher, declares."""
    declared = [list(keys_of(schema, f"{place}.")) for place, _, schema in parts_of(config)]
    for keys in (*declared, *(keys for _, _, keys in launchers_of(config))):
        yield from ((key.name, key.range) for key in keys if key.range is not None)


def _range_of(key: str, ranges: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The range of a key, or of the mapping that contains it; any finite number if none is declared."""
    return ranges.get(key) or ranges.get(key.rpartition(".")[0]) or (-LARGEST, LARGEST)


def _range_text(low: float, high: float, number: float) -> str:
    """The allowed numbers, for an error message."""
    if low == -LARGEST:
        return "a finite number"
    least = "more than 0" if low == TINY else f"{low:g} or more"
    if high == inf:
        return least
    if high == LARGEST:
        return least if -LARGEST <= number <= LARGEST else f"{least}, a finite number"
    return f"{least}, less than 1" if high < 1 else f"{least}, at most {high:,}"
