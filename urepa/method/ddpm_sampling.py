"""Samplers from noise to x0 under guidance: DDIM and diffusers' samplers for DDPM, this project's own for flow.

Shapes: B images, CHW latent.

DDIM is implemented here because diffusers' scheduler uses wrong timesteps if the number of steps does not divide T;
otherwise both give the same results, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from urepa.core import progress, random_draws
from urepa.core.class_token_protocols import class_values
from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.method import flow_sampling
from urepa.method.class_tokens import PackedState
from urepa.method.guidance import Guidance, guided_predictor, scales_of
from urepa.method.objectives.ddpm_math import DDPMMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.objectives.objective_math import ObjectiveMath, shape_of

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

    "trailing" steps begin at the noisiest timestep, to which the initial pure noise belongs (Lin et al. 2024, §3.3).
    """
    import diffusers

    return getattr(diffusers, SCHEDULERS[sampler])(
        num_train_timesteps=objective.timesteps,
        beta_start=objective.beta_start,
        beta_end=objective.beta_end,
        beta_schedule=objective.beta_schedule,
        prediction_type=objective.prediction_type,
        timestep_spacing="trailing",
        steps_offset=1,  # has no effect here, but StableDiffusionPipeline requires it
        **OPTIONS.get(sampler, {}),
    )


def image_noise(seed: int, class_id: int, index: int, shape: tuple[int, int, int]) -> Tensor:
    """The initial noise [C,H,W] of image `index` of a class; it does not depend on the other images."""
    return random_draws.normal(shape, random_draws.generator(seed, "image", class_id, index))


def trailing(timesteps: int, steps: int) -> list[int]:
    """`steps` (1 to T) of T timesteps, evenly spaced and decreasing from T − 1 (Lin et al. 2024, table 2).

    These are diffusers' timesteps, without a superfluous last one: because T/steps is a float, np.arange returns one
    entry too many for some numbers (61 of 1,000), whose timestep is −1.
    """
    assert 1 <= steps <= timesteps
    return [int(t) - 1 for t in np.arange(timesteps, 0, -timesteps / steps)[:steps].round()]


def ddim(objective: DDPMMath, predict: Predict, x: Tensor, timesteps: list[int]) -> Tensor:
    """DDIM with η = 0 (Song et al. 2021, eq. 12) from each timestep to the next, and from the last to ᾱ = 1, x0.

    diffusers' DDIMScheduler goes to t − T // steps, which is the next timestep only if `steps` divides T. In that case
    the two are equal, bit for bit. For this, ᾱ must stay a scalar on the CPU: CUDA rounds a division by it differently
    than a division by a tensor on the GPU.
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
    """diffusers' scheduler as a solver: it steps through the given timesteps, and then to σ = 0, which is x0."""

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
    """Samples x0 [B,C,H,W] from standard normal noise, on its device. `scales` are guidance scales by name. If `steps`
    divides the number of timesteps, the steps equal those of diffusers' pipelines, bit for bit."""
    timesteps = trailing(objective.timesteps, steps)
    predict = guided_predictor(backbone, condition, scales, torch.float32, negative)
    return SAMPLERS[sampler](objective, predict, noise, timesteps)


def check_steps(objective: ObjectiveMath, steps: int, key: str = "steps") -> None:
    """Raises UserError if the objective has fewer timesteps than `steps`; `key` is the user's name for the number."""
    most = objective.most_steps
    if steps > most:
        raise UserError(f"{key}={steps}: this run has {most} timesteps; give as many or fewer")


def choose_sampler(objective: ObjectiveMath, name: str | None) -> str:
    """The sampler's name (None: the objective's default). Raises UserError if it cannot sample this objective."""
    if name is None:
        return objective.samplers[0]
    if name not in objective.samplers:
        raise UserError(
            f"sampler={name} cannot sample this run's objective; give one of {', '.join(objective.samplers)}"
        )
    return name


def uneven_timesteps(objective: ObjectiveMath, steps: int) -> dict[str, int]:
    """An entry for names of image folders: the number of timesteps if `steps` does not divide it; otherwise empty.

    Folders without this entry were made before `ddim` and `trailing` were implemented here, when such images were
    different."""
    if not isinstance(objective, DDPMMath) or objective.timesteps % steps == 0:
        return {}
    return {"timesteps": objective.timesteps}


def sample_by(
    backbone: Any,
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
    """Samples x0 [B,C,H,W] with a sampler of the objective (None: its default). `rngs`, one per image, are for samplers
    that add noise at each step. `guidance` is one scale for all parts of the condition together (1: no guidance), or a
    scale per name. `interval`: the times at which a flow is guided; DDPM is guided at all times. `negative`: the
    condition [B] of negative prompts (`urepa.method.guidance`). A backbone with a class token denoises it too, from
    noise that `rngs` draw first, under the same guidance."""
    if (values := class_values(backbone)) > 0:
        both = PackedState(backbone, shape_of(noise))
        own_noise = torch.stack([random_draws.normal((values, 1, 1), rng) for rng in rngs]).to(noise.device)
        how = (rngs, sampler, steps, guidance, interval, negative)
        return both.split(sample_by(both, objective, both.join(noise, own_noise), condition, *how))[0]
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
    """Samples x0 [B,C,H,W] of images (class id, index) on the condition's device. The noise of an image depends on
    the seed, its class id and its index alone."""
    noise = torch.stack([image_noise(seed, class_id, index, shape) for class_id, index in images])
    rngs = [random_draws.generator(seed, "image on the way", class_id, index) for class_id, index in images]
    noise = noise.to(condition.device)
    return sample_by(backbone, objective, noise, condition, rngs, sampler, steps, guidance, interval, negative)
