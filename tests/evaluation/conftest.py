"""A small model and its track, as evaluations get them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from urepa.evaluation.context import Context


@pytest.fixture
def make_context(build_trainer: Callable[..., Any], tmp_path: Path) -> Callable[..., Context]:
    """make_context(*overrides): the context of a trainer at step 0."""

    def make(*overrides: str) -> Context:
        trainer = build_trainer(*overrides)
        trainer.model.eval()
        return Context(
            model=trainer.model,
            objective=trainer.objective,
            loss=trainer.loss,
            track=None,
            cache=trainer.reader.cache,
            folder=tmp_path,
            device=torch.device("cpu"),
            seed=0,
            step=0,
            untrained=lambda: trainer.model,
        )

    return make


@pytest.fixture
def context(make_context: Callable[..., Context]) -> Context:
    return make_context()
