"""The cosine between the gradients of the diffusion and the alignment loss, of which schedules make decisions."""

from __future__ import annotations

import torch
from torch import Tensor

from urepa.core.collectives import sum_over_ranks


def cosine_of_sums(measured: list[dict[str, Tensor]]) -> Tensor | None:
    """The cosine of two gradients over all micro-batches, taps and ranks, from the sums of `tap_gradients`. NaN if one
    is 0; None without an alignment term."""
    sums = [of_tap for taps in measured for of_tap in taps.values()]
    if not sums:
        return None
    d, a, inner = sum_over_ranks(torch.stack(sums).sum(0))
    return inner / (d.sqrt() * a.sqrt())
