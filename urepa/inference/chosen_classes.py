"""Chooses the classes of a request (`classes=...`), which may be ids and names, mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError, did_you_mean
from urepa.core.escaping import printable
from urepa.core.ranks import is_first
from urepa.core.track_protocols import Track
from urepa.data.lists.classes import class_names

SHOWN = 10  # names that a message lists at most


def names_of(config: dict[str, Any], kept: list[str]) -> list[str]:
    """The names of a model's classes by id: those of `data.class_names`, otherwise `kept`, the names stored with the
    run or the export. [] if there are none."""
    track: Track = declaration_of(config["data"])
    named = track.class_names
    if named is None:
        return kept
    try:
        return class_names(named)
    except UserError as error:
        if is_first():
            print(f"warning: the classes have no names here: {error}")
        return []


def choose_classes(asked: Any, count: int, names: Sequence[str], whose: str) -> list[int]:
    """The requested ids, sorted and without duplicates. `asked` is None for all classes, a list of ids and names, or a
    single id or name. Raises UserError for anything that is neither the id nor the name of one of `count` classes."""
    if asked is None:
        return list(range(count))
    members = asked if isinstance(asked, list) else [asked]
    if not members:
        raise UserError("classes=[]: give at least one, or leave it out for all")
    return sorted({_id_of(one, count, names, whose) for one in members})


def _id_of(one: Any, count: int, names: Sequence[str], whose: str) -> int:
    if isinstance(one, int) and not isinstance(one, bool):
        if not 0 <= one < count:
            raise UserError(f"classes: there is no class {one}; {whose}'s are 0 to {count - 1}")
        return one
    if not isinstance(one, str):
        raise UserError(
            f"classes: {one!r} is neither an id nor a name; give [ID,NAME,...], with a name that reads as a number, as "
            "true or as null in quotes of its own: \"classes=['10']\""
        )
    found = [i for i, name in enumerate(names[:count]) if name == one]
    if len(found) > 1:
        raise UserError(f"classes: {' and '.join(map(str, found))} are both called {printable(one)}; give the id")
    if not found:
        raise UserError(_unknown_class_message(one, count, names[:count], whose))
    return found[0]


def _unknown_class_message(one: str, count: int, names: Sequence[str], whose: str) -> str:
    if not names:
        return (
            f"classes: {printable(one)} is a name, and the names of {whose}'s classes are not known; give ids, 0 to "
            f"{count - 1}"
        )
    if near := did_you_mean(one, names):
        return f"classes: there is no class {printable(one)}{printable(near)}"
    shown = ", ".join(map(printable, names[:SHOWN])) + (", ..." if count > SHOWN else "")
    return f"classes: there is no class {printable(one)}; {whose}'s are {shown}"
