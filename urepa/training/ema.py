"""The exponential moving average (EMA) of the trainable weights. The device can skip an update.

torch's AveragedModel and diffusers' EMAModel are not used: they cannot skip an update without synchronising with the
device, and the former copies the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from urepa.core.ema_initial_weights import initial_share
from urepa.core.errors import UserError
from urepa.models.weight_files import trainable


class EMA:
    """θ_ema ← d·θ_ema + (1−d)·θ over the trainable parameters. With warm-up, the update after n applied ones has the
    decay min(d, (1 + n) / (10 + n)), see `urepa.core.ema_initial_weights`.

    `updates` [] int64 counts the applied updates on the device, so that skipped steps need no synchronisation.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"trainer.ema_decay={decay}: give a number from 0 up to, but not including, 1")
        self.decay, self.warmup = decay, warmup
        self.parameters = trainable(model)
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.updates = torch.zeros((), dtype=torch.int64, device=next(iter(self.shadow.values())).device)

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """Applies one update, or none if `bad` is 1.0."""
        # 1 − min(d, (1 + n) / (10 + n)) = max(1 − d, 9 / (10 + n)); with 0 for 9 it is 1 − d bit for bit
        warm = (9.0 if self.warmup else 0.0) / (10 + self.updates)
        weight = warm.clamp(min=1.0 - self.decay) * (1.0 - bad)
        for name, p in self.parameters.items():  # one pass over memory; _foreach_sub, mul and add need three
            self.shadow[name].lerp_(p, weight)
        self.updates += bad == 0

    def initial_share(self) -> float:
        """The weight of the initial weights in the average, in [0, 1]. Synchronises with the device."""
        return initial_share(self.decay, int(self.updates), self.warmup)

    @contextlib.contextmanager
    @torch.no_grad()
    def use_averages(self) -> Iterator[None]:
        """Within the block the model has the EMA weights; afterwards it has its own again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.copy_(self.shadow[name])
            yield
        finally:
            for name, p in self.parameters.items():
                p.copy_(own[name])
