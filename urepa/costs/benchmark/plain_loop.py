"""A simple training loop over the same model and batches: torch's AdamW, its clipping, and an EMA parameter by
parameter as in REPA's train.py (github.com/sihyun-yu/REPA). No guard, no log, no second norm.

Shapes: B batch, N tokens, D width.

It shows what the fast step gains over a simple implementation; it does not represent any library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urepa.core.types import Batch
from urepa.method.losses import loss_math
from urepa.models.layers import resize_tokens
from urepa.models.token_draws import hand_out
from urepa.models.weight_files import trainable


class PlainLoop:
    """L_diff + λ_max·(L_token + w·L_manifold) of whole batches, λ constant."""

    def __init__(
        self,
        model: nn.Module,
        objective: Any,
        loss: Any,
        settings: Any,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        """`settings`: the trainer's; `autocast` the accelerator's."""
        self.model, self.objective, self.loss, self.settings = model, objective, loss, settings
        self.device, self.autocast = device, autocast
        self.parameters = trainable(model)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-4)
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, batches: list[Batch]) -> None:
        """One step of one batch, in as many micro-batches as there are."""
        self.model.train()
        for batch in batches:
            (self.total(batch.to(self.device)) / len(batches)).backward()
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self.parameters.items():
                self.shadow[name].mul_(self.settings.ema_decay).add_(p, alpha=1 - self.settings.ema_decay)

    def total(self, batch: Batch) -> Tensor:
        """The loss of one micro-batch."""
        x_t = self.objective.corrupt(batch.x0, batch.noise, batch.t_B)
        hand_out(self.model, batch.draws)
        with self.autocast():
            output = self.model(x_t, batch.t_B, batch.condition, batch.rows_R, batch.grids)
        target = self.objective.target(batch.x0, batch.noise, batch.t_B)
        total = F.mse_loss(output.prediction_RCHW.float(), target if batch.rows_R is None else target[batch.rows_R])
        for tokens in output.tokens.values():
            (own_teacher,) = batch.teachers.values()
            teacher = resize_tokens(own_teacher, tokens.grid)
            target = resize_tokens(self.loss.targets(own_teacher), tokens.grid)
            aligned = loss_math.token_loss(tokens.x_BND, target.x_BND).mean()
            if self.loss.manifold_weight:
                student, own = loss_math.UnitTokens(tokens.x_BND), loss_math.UnitTokens(teacher.x_BND)
                manifold = self.loss.manifold(student, own, lambda x: x)
                aligned = aligned + self.loss.manifold_weight * manifold
            total = total + self.loss.lambda_max * aligned / len(output.tokens)
        return total
