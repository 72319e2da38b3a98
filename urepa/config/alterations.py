"""What the keys of stored configs alter, by the declarations that have them (`urepa.core.comparability`).

Configs are flat here: dotted keys, values as text. What stands below `evaluation` is how a run is measured, and alters
no loss, also where it is a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_type_hints

from urepa.config.command_schemas import Train
from urepa.config.parts import SCHEMAS
from urepa.core.comparability import NOTHING, SILENT
from urepa.core.declared_keys import Key, keys_of

TARGET = "_target_"
MEASURES = "evaluation."


def alters(key: str, *configs: Mapping[str, str]) -> set[str]:
    """The quantities that two values of the key measure differently, by all configs that have it. Of a key that no
    declaration has (an earlier version's, or of a package that is not there) nothing is said, as by a new one."""
    found: set[str] = set()
    for config in configs:
        if key in config and not key.startswith(MEASURES):
            said = _said(key, config)
            found |= set(SILENT.get(key.partition(".")[0], NOTHING) if said is None else said)
    return found


def unpairs(key: str, *configs: Mapping[str, str]) -> bool:
    """Do runs of one seed that differ in the key see other data, noise or times?"""
    declared = (_declared(key, config) for config in configs if key in config and not key.startswith(MEASURES))
    return any(one is not None and one.unpairs for one in declared)


def _said(key: str, config: Mapping[str, str]) -> tuple[str, ...] | None:
    """What its declaration says of a key; None: nothing."""
    schema, name = _holder(key, config)
    declared = _declared(key, config)
    if name == TARGET or (declared is not None and declared.is_part):
        said: tuple[str, ...] | None = getattr(schema, "alters", None)
        return said
    return None if declared is None else declared.alters


def _declared(key: str, config: Mapping[str, str]) -> Key | None:
    """The setting at or above a key."""
    schema, name = _holder(key, config)
    found = (one for one in _keys(schema) if name == one.name or name.startswith(f"{one.name}."))
    return next(found, None)


def _holder(key: str, config: Mapping[str, str]) -> tuple[type | None, str]:
    """The declaration of the innermost part that has the key, None if it is not declared, and the key in it."""
    place = key
    while place := place.rpartition(".")[0]:
        target = config.get(f"{place}.{TARGET}")
        if target is not None or "." not in place:
            schema = _roots().get(place) if target is None else SCHEMAS.get(target)
            return schema, key.removeprefix(f"{place}.")
    return None, key


@cache
def _keys(schema: type | None) -> tuple[Key, ...]:
    return () if schema is None else tuple(keys_of(schema))


@cache
def _roots() -> dict[str, Any]:
    """The schemas of what stands at a config's root and is chosen without a `_target_`: the trainer's."""
    return {name: hint for name, hint in get_type_hints(Train).items() if is_dataclass(hint)}
