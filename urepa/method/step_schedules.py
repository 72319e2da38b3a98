"""λ and the learning rate as functions of the step, which is the index of the next update."""

from __future__ import annotations

import math

from urepa.core.protocols import LossMath


def linear_warmup(step: int, maximum: float, warmup_steps: int) -> float:
    """λ(step): linear from 0 to `maximum` over `warmup_steps`, then constant."""
    if step >= warmup_steps:
        return maximum
    return maximum * step / warmup_steps


def cosine_with_warmup(step: int, max_steps: int, warmup_ratio: float, final_ratio: float = 0.0) -> float:
    """The factor of the peak learning rate, in [0,1]: linear over the first `warmup_ratio` of the run, then half a
    cosine down to `final_ratio` at `max_steps` (constant if `final_ratio` is 1)."""
    warmup_steps = round(warmup_ratio * max_steps)
    if step < warmup_steps:
        return step / warmup_steps
    if step >= max_steps:
        return final_ratio
    cosine = 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / (max_steps - warmup_steps)))
    return final_ratio + (1.0 - final_ratio) * cosine


def time_power_at(loss: LossMath, step: int) -> float:
    """The exponent of a sample's weight by its time at this update: `time_power_at(step)` of a loss that has it, else
    its `time_power`."""
    of_step = getattr(loss, "time_power_at", None)
    return loss.time_power if of_step is None else float(of_step(step))
