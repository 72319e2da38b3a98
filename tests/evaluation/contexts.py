"""A run's folder, as evaluations get it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from urepa.data.cache import Cache
from urepa.evaluation.context import Context
from urepa.inference.open_run import OpenedRun
from urepa.training.assembly import build_loss


def context_of(opened: OpenedRun, cache: Cache, folder: Path, step: int) -> Context:
    """The context of a run with its EMA weights on the CPU; evaluations write to `folder`."""
    return Context(
        model=opened.model,
        objective=opened.objective,
        loss=build_loss(opened.config),
        track=opened.track,
        cache=cache,
        folder=folder,
        device=torch.device("cpu"),
        seed=0,
        step=step,
        untrained=lambda: opened.model,
    )


@dataclass
class Built:
    """A declaration of something that is already built."""

    network: Any

    def build(self) -> Any:
        return self.network
