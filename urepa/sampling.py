"""From noise to x0: diffusers' samplers under classifier-free guidance.

Shapes: B images, CHW latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from urepa import draws, progress
from urepa.contracts import Condition
from urepa.objectives import DDPM

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
