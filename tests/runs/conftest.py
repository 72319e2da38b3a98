"""Configs that tests of stored forms share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from earlier_forms import ENCODERS


@pytest.fixture(scope="session")
def evaluated(compose: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A config with a ViT and an EfficientNet among the encoders of its evaluation."""
    return compose(*ENCODERS)
