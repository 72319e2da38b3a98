"""The exponential moving average (EMA) of the trainable weights, skippable on the device.

It is own code because torch's AveragedModel and diffusers' EMAModel cannot skip an update without waiting for the
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
    """θ_ema ← d·θ_ema + (1−d)·θ over trainables; with warm-up, the update after n applied ones has the
    decay min(d, (1 + n) / (10 + n)), see `urepa.core.ema_initial_weights`.

    `updates` [] int64 counts the applied updates on the device, so that skipped steps need no answer from it.
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
        """One update; none where `bad` is 1.0."""
        # 1 − min(d, (1 + n) / (10 + n)) = max(1 − d, 9 / (10 + n)); with 0 for 9 it is 1 − d, to the last bit
        warm = (9.0 if self.warmup else 0.0) / (10 + self.updates)
        weight = warm.clamp(min=1.0 - self.decay) * (1.0 - bad)
        for name, p in self.parameters.items():  # one pass over memory, where _foreach_sub, mul and add are three
            self.shadow[name].lerp_(p, weight)
        self.updates += bad == 0

    def initial_share(self) -> float:
        """How much of the average the initial weights still are, in [0, 1]. Waits for the device."""
        return initial_share(self.decay, int(self.updates), self.warmup)

    @contextlib.contextmanager
    @torch.no_grad()
    def use_averages(self) -> Iterator[None]:
        """Inside, the model has the EMA weights; afterwards its own again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.copy_(self.shadow[name])
            yield
        finally:
            for name, p in self.parameters.items():
                p.copy_(own[name])
