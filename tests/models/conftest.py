"""Small random text encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from text_folders import WRITERS


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """declared(FAMILY): its declaration; its folder is written once."""
    made: dict[str, Any] = {}

    def declared(name: str) -> Any:
        if name not in made:
            made[name] = WRITERS[name](tmp_path_factory.mktemp("folders") / name)
        return made[name]

    return declared
