"""From noise to x0 under classifier-free guidance: DDIM and diffusers' samplers for DDPM, our own for flow.

Shapes: B images, CHW latent.

DDIM is own code because diffusers' scheduler goes to wrong timesteps where the number of steps does not divide T;
elsewhere both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from urepa.core import progress, random_draws
from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.method import flow_sampling
from urepa.method.guidance import Guidance, guided_predictor, scales_of
from urepa.method.objectives.ddpm_math import DDPMMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.objectives.objective_math import ObjectiveMath

Predict = Callable[[Tensor, Tensor], Tensor]  # x_t [B,C,H,W] and a timestep [] to the guided prediction [B,C,H,W]
Solver = Callable[[DDPMMath, Predict, Tensor, list[int]], Tensor]  # standard normal noise and falling timesteps to x0

SCHEDULERS = {
    "ddim": "DDIMScheduler",  # Song et al. 2021, η = 0
    "dpmsolver": "DPMSolverMultistepScheduler",  # DPM-Solver++(2M), Lu et al. 2022
    "euler": "EulerDiscreteScheduler",  # Karras et al. 2022, algorithm 2 without churn
}
OPTIONS: dict[str, dict[str, Any]] = {"ddim": {"clip_sample": False}}  # x0 need not lie in [-1, 1]


def scheduler_for(objective: DDPMMath, sampler: str) -> Any:
    """diffusers' scheduler with the objective's own betas and prediction type. All three are deterministic.

    "trailing" steps begin at the noisiest timestep, where the noise that we start from is (Lin et al. 2024, §3.3).
    """
    import diffusers

    return getattr(diffusers, SCHEDULERS[sampler])(
        num_train_timesteps=objective.timesteps,
        beta_start=objective.beta_start,
        beta_end=objective.beta_end,
        beta_schedule=objective.beta_schedule,
        prediction_type=objective.prediction_type,
        timestep_spacing="trailing",
        steps_offset=1,  # nothing here, but StableDiffusionPipeline asks for it
        **OPTIONS.get(sampler, {}),
    )


def image_noise(seed: int, class_id: int, index: int, shape: tuple[int, int, int]) -> Tensor:
    """The noise [C,H,W] that image `index` of a class begins with, whatever else is made beside it."""
    return random_draws.normal(shape, random_draws.generator(seed, "image", class_id, index))


def trailing(timesteps: int, steps: int) -> list[int]:
    """`steps` of T timesteps, falling evenly from T − 1 (Lin et al. 2024, table 2); 1 to T of them.

    These are diffusers' own without its surplus: with a float T/steps, np.arange is one entry too long for some
    numbers (61 of 1,000), and the last timestep is −1.
    """
    assert 1 <= steps <= timesteps
    return [int(t) - 1 for t in np.arange(timesteps, 0, -timesteps / steps)[:steps].round()]


def ddim(objective: DDPMMath, predict: Predict, x: Tensor, timesteps: list[int]) -> Tensor:
    """DDIM with η = 0 (Song et al. 2021, eq. 12) from each timestep to the next, and from the last to ᾱ = 1, x0.

    diffusers' DDIMScheduler goes to t − T // steps, which is the next timestep only where `steps` divides T. There the
    two are equal, bit for bit: ᾱ stays a scalar on the CPU, by which CUDA divides with another rounding.
    """
    alpha_bars = pairwise([*objective.alphas_cumprod[timesteps], torch.ones(())])
    for t, (here, after) in zip(
        iterate_timesteps(torch.tensor(timesteps, device=x.device), len(x)), alpha_bars, strict=True
    ):
        at = here**0.5, (1 - here) ** 0.5
        prediction = predict(x, t)
        x0, noise = objective.implied_x0(x, prediction, *at), objective.implied_noise(x, prediction, *at)
        x = after**0.5 * x0 + (1 - after) ** 0.5 * noise
    return x


def diffusers_solver(sampler: str) -> Solver:
    """diffusers' scheduler as a solver: it steps between the timesteps that it is given, and then to σ = 0, x0."""

    def solve(objective: DDPMMath, predict: Predict, x: Tensor, timesteps: list[int]) -> Tensor:
        scheduler = scheduler_for(objective, sampler)
        scheduler.set_timesteps(timesteps=timesteps, device=x.device)
        x = x * scheduler.init_noise_sigma
        for t in iterate_timesteps(scheduler.timesteps, len(x)):
            prediction = predict(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(prediction, t, x).prev_sample
        return x

    return solve


SAMPLERS: dict[str, Solver] = {
    "ddim": ddim,
    "dpmsolver": diffusers_solver("dpmsolver"),
    "euler": diffusers_solver("euler"),
}


def iterate_timesteps(timesteps: Tensor, images: int) -> Any:
    """Iterates over timesteps with a progress bar."""
    return progress.bar(timesteps, desc=f"sampling {images:,} images", unit="step", leave=False)


@torch.no_grad()
def sample(
    backbone: nn.Module,
    objective: DDPMMath,
    noise: Tensor,
    condition: Condition,
    sampler: str,
    steps: int,
    scales: Mapping[str, float],
    negative: Condition | None = None,
) -> Tensor:
    """x0 [B,C,H,W] from standard normal noise, on its device. `scales` are of guidance, by name. Where
    `steps` divides the timesteps, these are the steps of diffusers' pipelines, bit for bit."""
    timesteps = trailing(objective.timesteps, steps)
    predict = guided_predictor(backbone, condition, scales, torch.float32, negative)
    return SAMPLERS[sampler](objective, predict, noise, timesteps)


def check_steps(objective: ObjectiveMath, steps: int, key: str = "steps") -> None:
    """UserError where a sampler of the objective cannot take so many steps; `key` is what the user gave them as."""
    most = objective.most_steps
    if steps > most:
        raise UserError(f"{key}={steps}: this run has {most} timesteps; give as many or fewer")


def choose_sampler(objective: ObjectiveMath, name: str | None) -> str:
    """The sampler of this name (None: the objective's default). UserError if it cannot sample this objective."""
    if name is None:
        return objective.samplers[0]
    if name not in objective.samplers:
        raise UserError(f"sampler={name} is not for this run's objective, which has {', '.join(objective.samplers)}")
    return name


def uneven_timesteps(objective: ObjectiveMath, steps: int) -> dict[str, int]:
    """The number of timesteps if `steps` does not divide it, for names of image folders; else empty.

    Folders that do not state them have images of before `ddim` and `trailing`, which were others there."""
    if not isinstance(objective, DDPMMath) or objective.timesteps % steps == 0:
        return {}
    return {"timesteps": objective.timesteps}


def sample_by(
    backbone: nn.Module,
    objective: ObjectiveMath,
    noise: Tensor,
    condition: Condition,
    rngs: list[np.random.Generator],
    sampler: str | None,
    steps: int,
    guidance: Guidance,
    interval: tuple[float, float] = (0.0, 1.0),
    negative: Condition | None = None,
) -> Tensor:
    """x0 [B,C,H,W] by a sampler of the objective's (None: its usual one). `rngs`, one per image, are for samplers that
    add noise on the way. `guidance` is one scale for all parts of the condition together (1: none), or one by name.
    `interval` are the times at which a flow is guided; DDPM's are all. `negative`: the condition [B] of negative
    prompts (`urepa.method.guidance`)."""
    name = choose_sampler(objective, sampler)
    check_steps(objective, steps)
    scales = scales_of(guidance, condition.names)
    if isinstance(objective, FlowMath):
        return flow_sampling.sample(
            backbone, objective, noise, condition, name, steps, scales, interval, rngs, negative
        )
    assert isinstance(objective, DDPMMath)
    assert interval == (0.0, 1.0)
    return sample(backbone, objective, noise, condition, name, steps, scales, negative)


def sample_images(
    backbone: nn.Module,
    objective: ObjectiveMath,
    images: list[tuple[int, int]],
    shape: tuple[int, int, int],
    condition: Condition,
    *,
    sampler: str | None,
    steps: int,
    guidance: Guidance,
    seed: int,
    interval: tuple[float, float] = (0.0, 1.0),
    negative: Condition | None = None,
) -> Tensor:
    """x0 [B,C,H,W] of images (class id, index), each from its own addressed noise, on the condition's device."""
    noise = torch.stack([image_noise(seed, class_id, index, shape) for class_id, index in images])
    rngs = [random_draws.generator(seed, "image on the way", class_id, index) for class_id, index in images]
    noise = noise.to(condition.device)
    return sample_by(backbone, objective, noise, condition, rngs, sampler, steps, guidance, interval, negative)
