"""Avoids that Hydra composes the config twice for one command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.hydra import Hydra

# hydra.mode may be set by an argument, or by a file of another folder than conf/
MAY_SET_IT = ("hydra.mode", "hydra.searchpath", "--config-", "-cd", "-cp", "-cn")


@contextmanager
def composed_once() -> Iterator[None]:
    """Hydra composes the whole config to read hydra.mode from it, and composes it again for the run, which takes a
    fifth of a second per command. No file of conf/ sets hydra.mode, so the first composition is skipped if nothing else
    may set it."""
    composing = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        may = any(argument.lstrip("+~").startswith(MAY_SET_IT) for argument in (*sys.argv[1:], *overrides))
        return composing(self, config_name, overrides) if may else None

    Hydra.get_mode = get_mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = composing  # type: ignore[method-assign]
