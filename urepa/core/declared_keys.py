"""What a key of a command or of a part says of itself where it is declared: its meaning, its default, its range, and
what may not be compared across two values of it.

OmegaConf drops a field's metadata, so `keys_of` reads it from the dataclass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING

LARGEST = 3.4028234663852886e38  # of 32-bit floats: a larger number is infinite in training
SIZE = 10**6  # more than a network, an image, a batch or a sampler has of anything
TINY = 1e-12
COUNT = 10**9  # more images than any data set has
LAST_STEP = 10**8 - 1  # a checkpoint's name has eight digits
WORKERS = 1024  # more threads or processes than a machine has cores; some 10,000 more end in a segmentation fault
LAST_SEED = 2**63 - 1
# what a setting's value is of a run: a name of the backbone's taps, one or several of the objective's times, steps of
# its sampler, and two times of which the first is not the later one
TAP, TIME, SAMPLER_STEPS, INTERVAL = "tap", "time", "sampler steps", "interval"

MOVED = {"loss.stop_step": "schedule.stop_step"}  # keys of an earlier version, and what they are called now


def setting(meaning: str, default: Any = MISSING, **limits: Any) -> Any:
    """A dataclass's field that is a key.

    Args:
        meaning: what --help says of it.
        default: MISSING where a file of conf/ or the command line gives it.
        limits: `ge` and `le`, the lowest and the highest value of a number, or of each in a list or a mapping
            (-LARGEST and LARGEST: any finite number; inf: infinity has a meaning too); `section`, the heading in --help
            under which this key and those after it stand; `alters`, the quantities that two values of it measure
            differently (`urepa.core.comparability`); `unpairs`, True where the runs of one seed that differ in it see
            other data, noise or times; `is_a`, what the value is of a run (TAP, TIME, SAMPLER_STEPS, INTERVAL), by
            which an evaluation's is checked before anything is built.
    """
    unknown = limits.keys() - {"ge", "le", "section", "alters", "unpairs", "is_a"}
    assert not unknown, f"no limit of a setting: {unknown}"
    return _field(default, {"meaning": meaning, **limits})


def part(meaning: str, default: Any = MISSING) -> Any:
    """A dataclass's field that holds a part: GROUP=NAME fills it from conf/GROUP/NAME.yaml."""
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
    choices: tuple[str, ...]  # of an enum; empty: any value of its type
    range: tuple[float, float] | None  # lowest and highest value of a number
    section: str | None  # the heading that begins here
    alters: tuple[str, ...] | None  # quantities (`urepa.core.comparability`); None: it says nothing
    unpairs: bool
    is_a: str | None  # what its value is of a run


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """The keys of a schema in order, those of schemas inside it in their place. An AssertionError where one has no
    meaning."""
    hints = get_type_hints(schema)
    for one in fields(schema):
        if one.name.startswith("_"):  # Hydra's
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
