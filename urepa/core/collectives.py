"""Communication between ranks. Every function is the identity in a single process.

Shapes: B local batch, G gathered batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from urepa.core.errors import UserError


def is_parallel() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_with_gradient(x_BD: Tensor) -> Tensor:
    """Gathers [B,D] of all ranks to [G,D], ordered by rank. Its backward adds the ranks' gradients, so that DDP's mean
    over ranks gives the gradient of the global loss (accelerate's own gather has no gradient)."""
    if not is_parallel():
        return x_BD
    from torch.distributed.nn import all_gather

    return torch.cat(all_gather(x_BD.contiguous()))


def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of a tensor over ranks."""
    return sum_over_ranks(x) / dist.get_world_size() if is_parallel() else x


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a tensor over ranks."""
    if is_parallel():
        x = x.clone()
        dist.all_reduce(x)
    return x


def any_rank(flag: Tensor) -> Tensor:
    """1.0 if the flag is set on any rank, without synchronising with the device."""
    flag = flag.float()
    if is_parallel():
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return flag


def all_objects(value: Any) -> list[Any]:
    """Every rank's value, ordered by rank."""
    if not is_parallel():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(task: Callable[[], Any]) -> Any:
    """Runs `task` on rank 0 while the others wait. Its result, or its UserError, is given on every rank."""
    result, mistake = None, None
    if not is_parallel() or dist.get_rank() == 0:
        try:
            result = task()
        except UserError as error:
            mistake = error
    result, mistake = all_objects((result, mistake))[0]
    if mistake is not None:
        raise mistake
    return result


class HostVote:
    """A maximum over ranks of a small integer, computed on the CPU without synchronising with the device."""

    def __init__(self, patience: timedelta | None = None) -> None:
        self.group = dist.new_group(backend="gloo", timeout=patience) if is_parallel() else None

    def maximum(self, value: int) -> int:
        if self.group is None:
            return value
        ballot = torch.tensor([value])
        dist.all_reduce(ballot, op=dist.ReduceOp.MAX, group=self.group)
        return int(ballot)


class LongBarrier:
    """A barrier for work that only rank 0 does. It may take a day; a device's own barrier times out in minutes."""

    def __init__(self) -> None:
        self._vote = HostVote(timedelta(days=1))

    def __call__(self) -> None:
        self._vote.maximum(0)
