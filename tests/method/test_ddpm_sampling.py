"""Samplers, compared with diffusers' own pipeline bit for bit, and with closed forms for a point and for Gaussian
data."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from class_ids import of_ids
from sd import SMALL, write_unet
from torch import Tensor, nn
from toy_runs import small_pipeline

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.types import Denoised
from urepa.method.ddpm_sampling import (
    SAMPLERS,
    SCHEDULERS,
    image_noise,
    sample,
    sample_by,
    scheduler_for,
    trailing,
    uneven_timesteps,
)
from urepa.method.objectives.ddpm_math import DDPMMath, EpsilonMath, VelocityMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.models.backbones.unet_net import UNet

LINEAR = (0.00085, 0.012, "linear", 1000)
SCALED = (0.00085, 0.012, "scaled_linear", 1000)
SHAPE = (4, 8, 8)


def noise_of(count: int) -> Tensor:
    return torch.stack([image_noise(3, 7, i, SHAPE) for i in range(count)])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> UNet:
    from diffusers import UNet2DConditionModel

    folder = write_unet(tmp_path_factory.mktemp("sampling"), **SMALL)
    torch.manual_seed(0)
    return UNet(UNet2DConditionModel.from_pretrained(folder / "unet"), torch.randn(11, 77, 16)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("objective", [VelocityMath(*LINEAR), EpsilonMath(*SCALED)])
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 5), ("dpmsolver", 6), ("euler", 6)])
def test_the_steps_are_those_of_diffusers_pipeline_bit_for_bit(
    backbone: UNet, sampler: str, steps: int, objective: DDPMMath, guidance: float
) -> None:
    import diffusers

    own = {"clip_sample": False} if sampler == "ddim" else {}
    scheduler = getattr(diffusers, SCHEDULERS[sampler])(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear" if isinstance(objective, VelocityMath) else "scaled_linear",
        prediction_type="v_prediction" if isinstance(objective, VelocityMath) else "epsilon",
        timestep_spacing="trailing",
        steps_offset=1,
        **own,
    )
    pipe = small_pipeline(backbone.unet, scheduler)
    ids = torch.tensor([4, 2])
    theirs = pipe(
        latents=noise_of(2),
        prompt_embeds=backbone.embedding_KLE[ids],
        negative_prompt_embeds=backbone.embedding_KLE[[10, 10]],
        guidance_scale=guidance,
        num_inference_steps=steps,
        output_type="latent",
    ).images
    ours = sample(backbone, objective, noise_of(2), of_ids(ids, 10), sampler, steps, {"class": guidance})
    assert torch.equal(ours, theirs)


NOBODY = of_ids(torch.zeros(3).long(), 1)


@pytest.mark.fast(1)
@pytest.mark.parametrize("objective", [VelocityMath(*LINEAR), EpsilonMath(*SCALED), VelocityMath(*LINEAR[:3], 400)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_steps_divide_the_timesteps_diffusers_scheduler_gives_the_same_bits(
    sampler: str, objective: DDPMMath
) -> None:
    model = Gaussian(objective)
    others = [] if sampler == "ddim" else [7, 30, 48, 333]  # whose timesteps are right there
    for steps in [1, 10, 20, 50, 100, *others]:
        scheduler = scheduler_for(objective, sampler)
        scheduler.set_timesteps(steps)
        x = noise_of(3) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            prediction = model(scheduler.scale_model_input(x, t), t.expand(3), NOBODY).prediction_RCHW
            x = scheduler.step(prediction, t, x).prev_sample
        assert torch.equal(sample(model, objective, noise_of(3), NOBODY, sampler, steps, {}), x), steps


class Knows(nn.Module):
    """Predicts exactly for data that consists of one point, by the objective's own definitions."""

    def __init__(self, objective: DDPMMath, x0: Tensor) -> None:
        super().__init__()
        self.objective, self.x0 = objective, x0

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        t_B = t_B.long()
        signal, sigma = self.objective.signal_and_noise(t_B)
        x0 = self.x0.expand_as(x_t)
        return Denoised(self.objective.target(x0, (x_t - signal * x0) / sigma, t_B))


@pytest.mark.parametrize("objective", [VelocityMath(*LINEAR), EpsilonMath(*SCALED)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_a_perfect_model_samplers_reach_the_data(sampler: str, objective: DDPMMath) -> None:
    x0 = torch.linspace(-1.5, 1.5, 256).view(1, *SHAPE)
    for steps in (8, 7, 61):
        found = sample(Knows(objective, x0), objective, noise_of(3), NOBODY, sampler, steps, {})
        torch.testing.assert_close(found, x0.expand(3, -1, -1, -1), atol=1e-5, rtol=0)


# --- Gaussian data: every step multiplies by a number ------------------------------------------------------

STD = 0.5  # of the data


class Gaussian(nn.Module):
    """Predicts E[x0 | x_t] of x0 ~ N(0, STD²) and the matching ε. Records the timesteps at which it was called."""

    def __init__(self, objective: DDPMMath) -> None:
        super().__init__()
        self.objective = objective
        self.asked: list[int] = []

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        self.asked.append(int(t_B[0]))
        assert self.objective.has_time(t_B.long()), self.asked
        signal, sigma = (part.double() for part in self.objective.signal_and_noise(t_B.long()))
        x0 = signal * STD**2 / (signal**2 * STD**2 + sigma**2) * x_t.double()
        noise = (x_t.double() - signal * x0) / sigma
        return Denoised(self.objective.target(x0, noise, t_B.long()).float())


def alpha_bars(objective: DDPMMath, timesteps: list[int]) -> list[float]:
    """ᾱ at each timestep, from β as the papers have them, and 1."""
    power = {"linear": 1, "scaled_linear": 2}[objective.beta_schedule]
    ends = objective.beta_start ** (1 / power), objective.beta_end ** (1 / power)
    products = np.cumprod(1 - np.linspace(*ends, objective.timesteps) ** power)
    return [float(products[t]) for t in timesteps] + [1.0]


def of_ddim(bars: list[float]) -> float:
    """Song et al. 2021, eq. 12, η = 0: what x_T = 1 becomes."""
    x = 1.0
    for here, after in pairwise(bars):
        x0 = math.sqrt(here) * STD**2 / (here * STD**2 + 1 - here) * x
        noise = (x - math.sqrt(here) * x0) / math.sqrt(1 - here)
        x = math.sqrt(after) * x0 + math.sqrt(1 - after) * noise
    return x


def of_euler(bars: list[float]) -> float:
    """Karras et al. 2022, algorithm 1's Euler step in σ = √((1 − ᾱ)/ᾱ), begun with x = σ."""
    sigmas = [math.sqrt((1 - bar) / bar) for bar in bars]
    x = sigmas[0]
    for here, after in pairwise(sigmas):
        denoised = STD**2 / (STD**2 + here**2) * x
        x += (after - here) * (x - denoised) / here
    return x


def of_dpmsolver(bars: list[float]) -> float:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2 (2M): first order in the first step, and in the last, to λ = ∞."""
    x, before, h_before = 1.0, 0.0, 0.0
    for i, (here, after) in enumerate(pairwise(bars)):
        x0 = math.sqrt(here) * STD**2 / (here * STD**2 + 1 - here) * x
        if after == 1:
            return x0
        h = 0.5 * (math.log(after / (1 - after)) - math.log(here / (1 - here)))
        slope = 0.0 if i == 0 else h / (2 * h_before) * (x0 - before)
        x = math.sqrt((1 - after) / (1 - here)) * x - math.sqrt(after) * math.expm1(-h) * (x0 + slope)
        before, h_before = x0, h
    raise AssertionError


ON_PAPER = {"ddim": of_ddim, "dpmsolver": of_dpmsolver, "euler": of_euler}
DIVIDED = [
    (VelocityMath(*LINEAR), [1, 2, 7, 30, 50, 61, 150, 333, 600, 999, 1000]),
    (EpsilonMath(*SCALED), [1, 7, 30, 50, 121, 150, 333, 999, 1000]),
    (EpsilonMath(*LINEAR[:3], 400), [1, 7, 29, 30, 50, 150, 333, 399, 400]),
    (VelocityMath(*SCALED[:3], 100), [1, 7, 29, 30, 50, 99, 100]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "numbers"), DIVIDED)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_number_of_steps_follows_the_papers_formula(
    sampler: str, objective: DDPMMath, numbers: list[int]
) -> None:
    one, condition = torch.ones(1, 1, 1, 1), of_ids(torch.zeros(1).long(), 1)
    for steps in numbers:
        model = Gaussian(objective)
        found = float(sample_by(model, objective, one, condition, [], sampler, steps, 1.0))
        exact = [Fraction(objective.timesteps * (steps - i), steps) for i in range(steps)]
        timesteps = [round(t) - 1 for t in exact]
        assert model.asked == timesteps, steps
        assert found == pytest.approx(ON_PAPER[sampler](alpha_bars(objective, timesteps)), abs=3e-5), steps


@pytest.mark.fast(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_are_nearer_to_the_data(sampler: str) -> None:
    """For numbers of steps that divide the timesteps and for others."""
    one, condition = torch.ones(1, 1, 1, 1), of_ids(torch.zeros(1).long(), 1)
    objective = VelocityMath(*LINEAR)
    errors = [
        abs(float(sample_by(Gaussian(objective), objective, one, condition, [], sampler, steps, 1.0)) - STD)
        for steps in (2, 7, 20, 61, 150, 333, 600)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 5e-3


@pytest.mark.parametrize("timesteps", [1, 7, 100, 400, 999, 1000])
def test_trailing_timesteps_are_even(timesteps: int) -> None:
    for steps in range(1, timesteps + 1):
        found = trailing(timesteps, steps)
        assert len(found) == steps
        assert (found[0], min(found)) == (timesteps - 1, found[-1])
        assert all(after < t for t, after in pairwise([*found, -1]))
        exact = [timesteps * (steps - i) / steps - 1 for i in range(steps)]
        assert max(abs(t - e) for t, e in zip(found, exact, strict=True)) <= 0.5 + 1e-9
        if timesteps % steps == 0:
            assert found == list(range(timesteps - 1, -1, -timesteps // steps))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_than_timesteps_are_refused_before_the_first(sampler: str) -> None:
    objective = VelocityMath(*LINEAR[:3], 100)
    model = Gaussian(objective)
    with pytest.raises(UserError, match="steps=101: this run has 100 timesteps; give as many or fewer"):
        sample_by(model, objective, noise_of(1), of_ids(torch.zeros(1).long(), 1), [], sampler, 101, 1.0)
    assert model.asked == []


def test_folders_state_timesteps_that_steps_do_not_divide() -> None:
    assert uneven_timesteps(VelocityMath(*LINEAR), 50) == {}
    assert uneven_timesteps(VelocityMath(*LINEAR), 150) == {"timesteps": 1000}
    assert uneven_timesteps(VelocityMath(*LINEAR[:3], 300), 150) == {}
    assert uneven_timesteps(FlowMath("linear", "uniform"), 7) == {}


def test_noise_depends_on_seed_class_and_index_alone() -> None:
    one = image_noise(0, 207, 3, SHAPE)
    assert torch.equal(one, image_noise(0, 207, 3, SHAPE))
    others = [(1, 207, 3), (0, 208, 3), (0, 207, 4), (0, 3, 207)]
    assert all(not torch.equal(one, image_noise(*address, SHAPE)) for address in others)
    many = torch.stack([image_noise(0, c, i, SHAPE) for c in range(10) for i in range(10)])
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 1) < 0.03
