"""Samplers from noise to x0 along a flow: Euler and Heun on its ODE, Euler-Maruyama on an SDE with the same marginals.

Shapes: B images, CHW latent. The state is fp64, the backbone's input fp32. Times decrease from 1 (noise) to 0 (data).

diffusers' flow schedulers compute in fp32, and have neither a guidance interval nor SiT's SDE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from urepa.core import progress, random_draws
from urepa.core.conditions import Condition
from urepa.method.guidance import guided_predictor
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.objectives.objective_math import shape_of
from urepa.method.projected_guidance import Projection

LAST = 0.04  # where the SDE's noisy steps end; one step without noise leads from there to 0
Velocity = Callable[[Tensor, Tensor], Tensor]  # x [B,C,H,W] and t [], both fp64, to dx/dt


def guided_velocity(
    backbone: nn.Module,
    condition: Condition,
    scales: Mapping[str, float],
    interval: tuple[float, float],
    negative: Condition | None = None,
    projection: Projection | None = None,
) -> Velocity:
    """The backbone's velocity, guided at times inside `interval` (Kynkäänniemi et al. 2024)."""
    low, high = interval
    predict = guided_predictor(backbone, condition, scales, torch.float64, negative, projection)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return predict(x.float(), t.float(), guided=low <= float(t) <= high)

    return velocity


def times_from_noise(flow: FlowMath, steps: int, x: Tensor) -> Tensor:
    """`steps` + 1 times of the flow for images as x, from 1 to 0, on its device."""
    return flow.sampling_times(steps, shape_of(x), x.device)


def euler(flow: FlowMath, velocity: Velocity, x: Tensor, steps: int, rngs: list[np.random.Generator]) -> Tensor:
    """`steps` Euler steps. Deterministic."""
    times = times_from_noise(flow, steps, x)
    for t, after in step_intervals(times, len(x)):
        x = x + (after - t) * velocity(x, t)
    return x


def heun(flow: FlowMath, velocity: Velocity, x: Tensor, steps: int, rngs: list[np.random.Generator]) -> Tensor:
    """`steps` Heun steps, the last one Euler's: 2·steps − 1 evaluations. Deterministic."""
    times = times_from_noise(flow, steps, x)
    for t, after in step_intervals(times, len(x)):
        slope = velocity(x, t)
        if after > 0:
            slope = (slope + velocity(x + (after - t) * slope, after)) / 2
        x = x + (after - t) * slope
    return x


def euler_maruyama(
    flow: FlowMath, velocity: Velocity, x: Tensor, steps: int, rngs: list[np.random.Generator]
) -> Tensor:
    """dx = (v − w·s/2)dt + √w dW with w = 2t (SiT, §2.4, and its code): `steps` times from 1 to 0.04, then 0. The last
    step uses only the drift. Each image's noise comes from its own generator."""
    noisy = torch.linspace(1, LAST, steps, dtype=torch.float64, device=x.device)
    times = torch.cat([noisy, noisy.new_zeros(1)])
    for t, after in step_intervals(times, len(x)):
        v = velocity(x, t)
        drift = v - t * flow.score(x, v, t.expand(len(x)))
        x = x + (after - t) * drift
        if after > 0:
            noise = torch.stack([random_draws.normal(tuple(x.shape[1:]), rng) for rng in rngs]).to(x.device)
            x = x + (2 * t * (t - after)).sqrt() * noise
    return x


SAMPLERS = {"euler": euler, "heun": heun, "sde": euler_maruyama}


def step_intervals(times: Tensor, images: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The start and end time of each step, with a progress bar."""
    return progress.bar(list(pairwise(times)), desc=f"sampling {images:,} images", unit="step", leave=False)


@torch.no_grad()
def sample(
    backbone: nn.Module,
    flow: FlowMath,
    noise: Tensor,
    condition: Condition,
    sampler: str,
    steps: int,
    scales: Mapping[str, float],
    interval: tuple[float, float],
    rngs: list[np.random.Generator],
    negative: Condition | None = None,
    projection: Projection | None = None,
) -> Tensor:
    """Samples x0 [B,C,H,W] from standard normal noise, on its device. `scales` are guidance scales by name; `rngs`, one
    per image, draw the SDE's noise. With a `projection` the guidance is adaptive projected guidance."""
    predicted = guided_velocity(backbone, condition, scales, interval, negative, projection)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return flow.to_velocity(x, predicted(x, t), t.expand(len(x)))  # the prediction itself, or what it implies

    return SAMPLERS[sampler](flow, velocity, noise.double(), steps, rngs).float()
