"""Finds the declaration of a part from its settings in a config (`urepa.core.protocols`), without torch."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from urepa.config.parts import SCHEMAS
from urepa.core.errors import UserError
from urepa.core.memory_errors import is_out_of_memory

# exceptions that constructors raise for settings that do not fit together; assertions are not among them
UNFIT = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError)


def declaration_of(part: Any) -> Any:
    """Builds the declaration of a part, and those of its nested parts, from their settings. This imports the module
    that the config names, so it must only be called with a command's own config or a stored config that was checked.
    Raises UserError if the settings do not fit together, or if the config names a class that is not a declaration."""
    if not isinstance(part, dict) or "_target_" not in part:
        raise UserError(f"{part} is not a part: choose one of conf/ instead, GROUP=NAME")
    with build_errors(part):
        # urepa's declarations depend on their settings alone; a check asks for each of them several times
        found = copy.deepcopy(_built(pickle.dumps(part))) if _is_urepas(part) else instantiate(part, _convert_="all")
    is_declared = type(found) in SCHEMAS.values()  # an evaluation has no build
    if not hasattr(found, "build") and not is_declared:
        raise UserError(f"{part['_target_']} declares no part: it has no build, as urepa/core/protocols.py says")
    return found


@lru_cache(maxsize=1024)
def _built(settings: bytes) -> Any:
    """The declaration with these settings, a pickled dict. It must not be modified."""
    return instantiate(pickle.loads(settings), _convert_="all")


def _is_urepas(part: Any) -> bool:
    """Whether the part and those below it are none of a user's own package."""
    if isinstance(part, dict):
        return str(part.get("_target_", "urepa.")).startswith("urepa.") and all(map(_is_urepas, part.values()))
    return all(map(_is_urepas, part)) if isinstance(part, list) else True


@contextlib.contextmanager
def build_errors(config: dict[str, Any]) -> Iterator[None]:
    """Within the block, errors that libraries raise for settings become a UserError that names the settings; a lack of
    memory is none of these."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, (UserError, OSError)):  # Hydra wraps exceptions of constructors
            raise error.__cause__ from None
        raise UserError(_build_error_text(config, error.__cause__ or error)) from error
    except UNFIT as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(_build_error_text(config, error)) from error


def _build_error_text(config: dict[str, Any], error: BaseException) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in config.items() if not key.startswith("_"))
    name = str(config["_target_"]).rpartition(".")[2]
    reason = " ".join(str(error).split())
    return f"{name} cannot be built with {settings} ({type(error).__name__}: {reason}); give settings that fit together"
