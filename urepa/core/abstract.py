"""The base class of classes with members that subclasses must define, also in a user's own package."""

from __future__ import annotations

from abc import ABC
from typing import Any, Self

from urepa.core.errors import UserError


class Abstract(ABC):  # noqa: B024 (its subclasses have them)
    """A class whose subclasses must define its abstract methods and those of its ClassVars that have no value. Raises
    UserError for an instance of a class that lacks one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        check_complete(cls)
        return super().__new__(cls)


def check_complete(cls: type) -> None:
    """Raises UserError if a class lacks a member that a base derived from `Abstract` leaves to its subclasses."""
    if lacking := _lacking(cls):
        bases = sorted({f"{base.__module__}.{base.__qualname__}" for base in lacking.values()})
        left = "leaves to its" if len(bases) == 1 else "leave to their"
        raise UserError(
            f"{cls.__module__}.{cls.__qualname__} does not define {', '.join(sorted(lacking))}, which "
            f"{' and '.join(bases)} {left} subclasses; define {'it' if len(lacking) == 1 else 'them'}"
        )


def _lacking(cls: type) -> dict[str, type]:
    """The members that a class lacks, each with the base that declares it."""
    found: dict[str, type] = {}
    for base in cls.__mro__:
        if issubclass(base, Abstract):
            own = [name for name, hint in vars(base).get("__annotations__", {}).items() if "ClassVar" in str(hint)]
            found |= {name: base for name in own if not hasattr(cls, name)}
    for name in getattr(cls, "__abstractmethods__", ()):
        found[name] = next(base for base in cls.__mro__ if name in vars(base))
    return found
