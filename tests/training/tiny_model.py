"""A small model, gradients for it, and the flag that makes an update happen or be skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from urepa.method.training_step import AlignedModel

GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def model() -> AlignedModel:
    torch.manual_seed(0)
    return AlignedModel(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), {"mid": nn.Linear(3, 5)})


def set_gradients(net: nn.Module, seed: int, scale: float = 1.0) -> None:
    random = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = scale * torch.randn(p.shape, generator=random)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
