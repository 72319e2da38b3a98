"""From noise to x0 under classifier-free guidance: diffusers' samplers for DDPM, our own for flow.

Shapes: B images, CHW latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from urepa import draws, flow_sampling, progress
from urepa.contracts import Condition
from urepa.errors import UserError
from urepa.objectives import DDPM, Flow, Objective

SAMPLERS = {
    "ddim": "DDIMScheduler",  # Song et al. 2021, η = 0
    "dpmsolver": "DPMSolverMultistepScheduler",  # DPM-Solver++(2M), Lu et al. 2022
    "euler": "EulerDiscreteScheduler",  # Karras et al. 2022, algorithm 2 without churn
}
OPTIONS: dict[str, dict[str, Any]] = {"ddim": {"clip_sample": False}}  # x0 need not lie in [-1, 1]


def scheduler_for(objective: DDPM, sampler: str) -> Any:
    """diffusers' scheduler with the objective's own betas and prediction type. All three are deterministic.

    "trailing" steps begin at the noisiest timestep, where the noise that we start from is (Lin et al. 2024, §3.3).
    """
    import diffusers

    return getattr(diffusers, SAMPLERS[sampler])(
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
    return draws.normal(shape, draws.generator(seed, "image", class_id, index))


@torch.no_grad()
def sample(
    backbone: nn.Module, noise: Tensor, condition: Condition, scheduler: Any, steps: int, guidance: float
) -> Tensor:
    """x0 [B,C,H,W] from standard normal noise, on its device.

    With guidance g the prediction is u + g·(c − u) (Ho & Salimans 2022), u under the null condition in the same
    batch; at 1 the null pass is left out. The steps are those of diffusers' pipelines, bit for bit.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    x = noise * scheduler.init_noise_sigma
    guided = guidance != 1
    ids_B, null_id = condition.ids_B, condition.null_id
    both = Condition(torch.cat([condition.null().ids_B, ids_B]), null_id) if guided else condition
    for t in progress.bar(scheduler.timesteps, desc="samples", unit="step", leave=False):
        x_t = scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t)
        prediction = backbone(x_t, t.expand(len(x_t)), both).prediction_RCHW.float()
        if guided:
            null, given = prediction.chunk(2)
            prediction = null + guidance * (given - null)
        x = scheduler.step(prediction, t, x).prev_sample
    return x


def chosen_sampler(objective: Objective, name: str | None) -> str:
    """The sampler of this name (None: the objective's usual one). UserError where it does not solve its equation."""
    if name is None:
        return objective.samplers[0]
    if name not in objective.samplers:
        raise UserError(f"sampler={name} is not for this run's objective, which has {', '.join(objective.samplers)}")
    return name


def sample_by(
    backbone: nn.Module,
    objective: Objective,
    noise: Tensor,
    condition: Condition,
    rngs: list[np.random.Generator],
    sampler: str | None,
    steps: int,
    guidance: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """x0 [B,C,H,W] by a sampler of the objective's (None: its usual one). `rngs`, one per image, are for samplers that
    add noise on the way. `interval` are the times at which a flow is guided; DDPM's are all."""
    name = chosen_sampler(objective, sampler)
    if isinstance(objective, Flow):
        return flow_sampling.sample(backbone, objective, noise, condition, name, steps, guidance, interval, rngs)
    assert isinstance(objective, DDPM)
    assert interval == (0.0, 1.0)
    return sample(backbone, noise, condition, scheduler_for(objective, name), steps, guidance)


def sample_images(
    backbone: nn.Module,
    objective: Objective,
    images: list[tuple[int, int]],
    shape: tuple[int, int, int],
    null_id: int,
    device: torch.device,
    *,
    sampler: str | None,
    steps: int,
    guidance: float,
    seed: int,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """x0 [B,C,H,W] of images (class id, index), each from its own addressed noise."""
    noise = torch.stack([image_noise(seed, class_id, index, shape) for class_id, index in images])
    rngs = [draws.generator(seed, "image on the way", class_id, index) for class_id, index in images]
    condition = Condition(torch.tensor([class_id for class_id, _ in images], device=device), null_id)
    return sample_by(backbone, objective, noise.to(device), condition, rngs, sampler, steps, guidance, interval)
