"""The declaration of a key of a command or a part: its meaning, its default, its range, and the comparisons that two
different values of it rule out.

OmegaConf drops a field's metadata, so `keys_of` reads it from the dataclass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING

LARGEST = 3.4028234663852886e38  # largest 32-bit float: a larger number is infinite in training
SIZE = 10**6  # upper limit of sizes of networks, images, batches and samplers
TINY = 1e-12
COUNT = 10**9  # upper limit of numbers of images
LAST_STEP = 10**8 - 1  # the name of a checkpoint has eight digits
WORKERS = 1024  # upper limit of threads and processes; some 10,000 cause a segmentation fault
LAST_SEED = 2**63 - 1
# what a setting's value means for a run: a name of the backbone's taps, one or several of the objective's times, a
# number of its sampler's steps, and an interval of two times in ascending order
TAP, TIME, SAMPLER_STEPS, INTERVAL = "tap", "time", "sampler steps", "interval"

# keys of earlier versions, and their current names
MOVED = {"loss.stop_step": "schedule.stop_step", "warm_start": "warm_start.checkpoint"}


def setting(meaning: str, default: Any = MISSING, **limits: Any) -> Any:
    """A dataclass field that is a key.

    Args:
        meaning: its text in --help.
        default: MISSING if a file of conf/ or the command line must give it.
        limits: `ge` and `le`, the smallest and the largest value of a number, or of each number in a list or a mapping
            (-LARGEST and LARGEST: any finite number; inf: infinity is allowed too); `section`, the heading in --help
            of this key and the keys after it; `alters`, the quantities that are not comparable if it differs
            (`urepa.core.comparability`); `unpairs`, True if runs of the same seed that differ in it see other data,
            noise or times; `is_a`, what the value means for a run (TAP, TIME, SAMPLER_STEPS, INTERVAL), which is
            checked for evaluations before anything is built.
    """
    unknown = limits.keys() - {"ge", "le", "section", "alters", "unpairs", "is_a"}
    assert not unknown, f"no limit of a setting: {unknown}"
    return _field(default, {"meaning": meaning, **limits})


def part(meaning: str, default: Any = MISSING) -> Any:
    """A dataclass field that holds a part: GROUP=NAME fills it from conf/GROUP/NAME.yaml."""
    return _field(default, {"meaning": meaning, "is_part": True})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """A key of a command's schema."""

    name: str  # dotted
    meaning: str
    is_part: bool
    choices: tuple[str, ...]  # the values of an enum; empty: any value of its type
    range: tuple[float, float] | None  # smallest and largest value of a number
    section: str | None  # the heading that starts with this key
    alters: tuple[str, ...] | None  # quantities (`urepa.core.comparability`); None: not declared
    unpairs: bool
    is_a: str | None  # what its value means for a run


_hints_of = cache(get_type_hints)


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """The keys of a schema in order, with the keys of nested schemas at their place. Asserts that each has a
    meaning."""
    hints = _hints_of(schema)
    for one in fields(schema):
        if one.name.startswith("_"):  # a key of Hydra's
            continue
        name, hint, about = f"{prefix}{one.name}", hints[one.name], one.metadata
        if is_dataclass(hint) and isinstance(hint, type) and not about.get("is_part"):
            yield from keys_of(hint, f"{name}.")
            continue
        assert about.get("meaning"), f"{schema.__name__}.{one.name} says no meaning: declare it by setting() or part()"
        limits = (about["ge"], about.get("le", LARGEST)) if "ge" in about else None
        enums = [h for h in (hint, *get_args(hint)) if isinstance(h, type) and issubclass(h, Enum)]
        choices = tuple(choice.name for choice in enums[0]) if enums else ()
        alters, unpairs = about.get("alters"), about.get("unpairs", False)
        is_part = bool(about.get("is_part"))
        section, is_a = about.get("section"), about.get("is_a")
        yield Key(name, about["meaning"], is_part, choices, limits, section, alters, unpairs, is_a)
