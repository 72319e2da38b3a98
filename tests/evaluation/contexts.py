"""A run's folder as an evaluation gets to see it."""

from __future__ import annotations

from pathlib import Path

import torch

from urepa.data.cache import Cache
from urepa.evaluation.context import Context
from urepa.inference.open_run import OpenedRun
from urepa.training.assembly import make


def context_of(opened: OpenedRun, cache: Cache, folder: Path, step: int) -> Context:
    """Its EMA weights on the CPU; what an evaluation writes goes to `folder`."""
    return Context(
        model=opened.model,
        objective=opened.objective,
        loss=make(opened.config["loss"]),
        track=opened.track,
        cache=cache,
        folder=folder,
        device=torch.device("cpu"),
        seed=0,
        step=step,
        untrained=lambda: opened.model,
    )
