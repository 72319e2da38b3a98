"""From a part's settings in a config to its declaration (`urepa.core.protocols`), without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from urepa.config.parts import SCHEMAS
from urepa.core.errors import UserError

# what constructors raise over settings that do not fit together
UNFIT = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError)  # our own asserts stay what they are


def declaration_of(part: Any) -> Any:
    """The declaration of a part with its settings, and with those of parts that it holds. What the config names is
    imported: only for what a command was given, and for stored configs that were checked. UserError where the settings
    do not fit together, or the config names what declares nothing."""
    if not isinstance(part, dict) or "_target_" not in part:
        raise UserError(f"{part} is no part: choose one of conf/ in its place, GROUP=NAME")
    with build_errors(part):
        found = instantiate(part, _convert_="all")
    is_declared = type(found) in SCHEMAS.values()  # an evaluation measures without being built
    if not hasattr(found, "build") and not is_declared:
        raise UserError(f"{part['_target_']} declares no part: it has no build, as urepa/core/protocols.py says")
    return found


@contextlib.contextmanager
def build_errors(config: dict[str, Any]) -> Iterator[None]:
    """Inside, errors that libraries raise over settings become a UserError that names these."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, (UserError, OSError)):  # Hydra wraps what a constructor raises
            raise error.__cause__ from None
        raise UserError(_build_error_text(config, error.__cause__ or error)) from error
    except UNFIT as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_build_error_text(config, error)) from error


def _build_error_text(config: dict[str, Any], error: BaseException) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in config.items() if not key.startswith("_"))
    name = str(config["_target_"]).rpartition(".")[2]
    reason = " ".join(str(error).split())
    return f"{name} cannot be built with {settings} ({type(error).__name__}: {reason}); give settings that fit together"
