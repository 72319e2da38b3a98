"""What an evaluation after training gets to see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from urepa.alignment import AlignedModel
from urepa.data.cache import Cache


@dataclass(frozen=True)
class Context:
    """A model whose weights are the EMA's, in eval mode, and what it was trained on."""

    model: AlignedModel
    objective: Any
    track: Any
    cache: Cache
    folder: Path
    device: torch.device
    seed: int
    step: int
