"""Requests of the tests of published weights, and their comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from urepa.generate import check_checkpoint_request, check_run_request, config_root

Compose = Callable[..., dict[str, Any]]
REQUEST = ["classes=[1,7]", "n=1", "steps=2", "guidance=2"]


def asking(compose: Compose) -> Callable[..., dict[str, Any]]:
    """ask(*overrides): the request of a run or a checkpoint as the command makes it."""

    def ask(*overrides: str) -> dict[str, Any]:
        asked = compose(*overrides, root=config_root(list(overrides)))
        return (
            check_run_request(asked)
            if config_root(list(overrides)) == "generate"
            else check_checkpoint_request(asked, list(overrides))
        )

    return ask


def files(out: Path) -> dict[str, bytes]:
    """The images by variant and name."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*/*.png"))}
