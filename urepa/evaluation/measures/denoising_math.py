"""Measures how well a model denoises held-out images at given noise-to-signal ratios.

Shapes: N images, B images of a batch, CHW latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from urepa.core import random_draws
from urepa.core.conditions import without_never_given
from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, subset
from urepa.evaluation.measures.denoising import Denoising
from urepa.method.losses import loss_math
from urepa.method.objectives.objective_math import ObjectiveMath

BATCH = 32
HALVINGS = 40  # of the interval of times; a flow's time is then exact in fp32
FARTHEST = 0.1  # largest relative difference of a ratio from the asked one; timesteps are whole numbers


@torch.no_grad()
def denoise(asked: Denoising, context: Context) -> dict[str, float]:
    """The errors by ratio, their mean, and the error of the mean x0. Noise is addressed by the sample's id, so that it
    is the same in every run and at every ratio."""
    samples = subset(held_out_samples(context), asked.images)
    times = {ratio: time_at_ratio(context.objective, ratio) for ratio in asked.ratios}
    parts = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    errors = {ratio: torch.cat([_errors(context, part, time) for part in parts]) for ratio, time in times.items()}
    x0_NCHW = torch.cat([context.cache.x0(part) for part in parts]).double()
    metrics = {f"final/x0_error/{ratio:g}": float(error_N.mean()) for ratio, error_N in errors.items()}
    metrics["final/x0_error"] = sum(metrics.values()) / len(metrics)
    metrics["final/floor/x0_error"] = float((x0_NCHW - x0_NCHW.mean(0)).pow(2).mean())
    return metrics


def _errors(context: Context, part: Sequence[Sample], time: Tensor) -> Tensor:
    """The mean squared error of each sample's implied x0 at a time [] of the objective: [B], float64."""
    objective, conditions = context.objective, context.cache.conditions
    x0 = context.cache.x0(part)
    rngs = [random_draws.generator(random_draws.digest64("denoising", s.sample_id), "noise") for s in part]
    noise = torch.stack([random_draws.normal(tuple(x0.shape[1:]), rng) for rng in rngs])
    condition = without_never_given(conditions.of_samples(part, None, x0), conditions.dropout).to(context.device)
    t_B = time.repeat(len(part))
    x_t, x0, t_B = (x.to(context.device) for x in (objective.corrupt(x0, noise, t_B), x0, t_B))
    prediction = context.model.backbone(x_t, t_B, condition).prediction_RCHW.float()
    return loss_math.diffusion_loss(objective.to_x0(x_t, prediction, t_B), x0).double().cpu()


def time_at_ratio(objective: ObjectiveMath, ratio: float) -> Tensor:
    """The time [] of the objective at which σ/α is nearest to this ratio. Raises UserError if none is near it."""

    def ratio_at(fraction: float) -> float:
        signal, sigma = objective.signal_and_noise(objective.times_of(objective.time_at(fraction)).reshape(1))
        return float(sigma / signal)

    low, high = 0.0, 1.0  # σ/α increases with the time
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio_at(middle) < ratio else (low, middle)
    fraction = min((f for f in (low, high) if f < 1), key=lambda f: abs(ratio_at(f) - ratio))
    found = ratio_at(fraction)
    if abs(found - ratio) > FARTHEST * ratio:
        raise UserError(
            f"this run's objective has no time with a noise-to-signal ratio of {ratio:g}; the nearest one has "
            f"{found:.3g}: give other evaluation ratios"
        )
    return objective.times_of(objective.time_at(fraction))
