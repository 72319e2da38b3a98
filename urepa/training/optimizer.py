"""Parameter groups, global clipping, and an optimiser step that the device can skip; for trainable parameters only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from urepa.core.shards import whole
from urepa.models.weight_files import trainable


def groups_of(model: nn.Module, backbone_group: str) -> dict[str, list[nn.Parameter]]:
    """Every trainable parameter in exactly one group: heads in "head", the rest in `backbone_group`."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trainable(model).items():
        groups.setdefault("head" if name.startswith("heads.") else backbone_group, []).append(parameter)
    return groups


def clip_by_global_norm(optimizer: torch.optim.Optimizer, max_norm: float | None) -> dict[str, Tensor]:
    """Scales all gradients to a global norm of at most `max_norm` (None: only measures).

    Returns the norm before clipping, by group and as "all". Norms are computed by group and then added, so that a group
    whose gradients are all 0 does not change the clipping of the others by a single bit.
    """
    norms: dict[str, Tensor] = {}
    parameters: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norms[group["name"]] = whole(torch.nn.utils.get_total_norm(gradients))
        parameters += group["params"]
    norms["all"] = torch.stack([norm**2 for norm in norms.values()]).sum().sqrt()
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norms["all"])
    return norms


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Does one optimiser step, or none if `bad` is 1.0, as decided on the device."""
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
