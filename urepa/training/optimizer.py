"""AdamW over named groups, global clipping, and EMA: all over trainables only, all skippable on the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from urepa.core.ema_share import initial_share
from urepa.core.errors import UserError
from urepa.method.step_schedules import cosine_with_warmup
from urepa.models.weight_files import trainable


def groups_of(model: nn.Module, backbone_group: str) -> dict[str, list[nn.Parameter]]:
    """Every trainable parameter in exactly one group: heads in "head", the rest in `backbone_group`."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trainable(model).items():
        groups.setdefault("head" if name.startswith("heads.") else backbone_group, []).append(parameter)
    return groups


@dataclass
class AdamW:
    """Settings of torch's fused AdamW (Loshchilov & Hutter 2019; spec 000 §5.1). See `urepa.config`."""

    lr: dict[str, float]
    weight_decay: dict[str, float]
    betas: list[float]
    eps: float
    warmup_ratio: float
    final_ratio: float = 0.0

    def build(self, groups: dict[str, list[nn.Parameter]]) -> torch.optim.AdamW:
        """The optimiser. Its fused step takes `found_inf`, which leaves parameters, moments and Adam's own
        step count alone without asking the device (torch's GradScaler relies on the same)."""
        for part in groups:
            if part not in self.lr or part not in self.weight_decay:
                raise UserError(
                    f"optimizer has no lr and weight_decay for '{part}', which trains; it has "
                    f"{', '.join(self.lr)}: choose the optimizer option that fits lora"
                )
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": self.lr[part],
                    "weight_decay": self.weight_decay[part],
                    "name": part,
                }
                for part, parameters in groups.items()
            ],
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            fused=True,
        )

    def set_lr(self, optimizer: torch.optim.Optimizer, step: int, max_steps: int) -> None:
        """The learning rates of the update with this index."""
        factor = cosine_with_warmup(step, max_steps, self.warmup_ratio, self.final_ratio)
        for group in optimizer.param_groups:
            group["lr"] = self.lr[group["name"]] * factor


def clip_by_global_norm(optimizer: torch.optim.Optimizer, max_norm: float | None) -> dict[str, Tensor]:
    """Scales all gradients to a global norm of at most `max_norm` (spec 000 §5.3; None: only measures).

    Returns the norm before clipping, by group and as "all". Norms are taken by group and then added, so
    that a group whose gradients are all 0 leaves the others' clipping bit for bit as it was without it.
    """
    norms: dict[str, Tensor] = {}
    gradients = []
    for group in optimizer.param_groups:
        own = [p.grad for p in group["params"] if p.grad is not None]
        norms[group["name"]] = torch.nn.utils.get_total_norm(own)
        gradients += own
    norms["all"] = torch.stack([norm**2 for norm in norms.values()]).sum().sqrt()
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norms["all"] + 1e-6)).clamp(max=1.0))
    return norms


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """One update, or none where `bad` is 1.0, decided on the device."""
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()


class EMA:
    """θ_ema ← d·θ_ema + (1−d)·θ over trainables (spec 000 §5.5); with warm-up, the update after n applied ones has the
    decay min(d, (1 + n) / (10 + n)), see `urepa.core.ema_share`.

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
    def applied(self) -> Iterator[None]:
        """The model with EMA weights inside, and with its own, bit for bit, after."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.copy_(self.shadow[name])
            yield
        finally:
            for name, p in self.parameters.items():
                p.copy_(own[name])
