"""AdamW over named groups and global clipping: over trainables only, skippable on the device. AdamW is torch's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    parameters: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norms[group["name"]] = torch.nn.utils.get_total_norm(gradients)
        parameters += group["params"]
    norms["all"] = torch.stack([norm**2 for norm in norms.values()]).sum().sqrt()
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norms["all"])
    return norms


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """One update, or none where `bad` is 1.0, decided on the device."""
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
