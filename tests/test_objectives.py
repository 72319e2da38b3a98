"""The two targets against diffusers and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from urepa.losses import diffusion_loss
from urepa.objectives import DDPM, DDPMEpsilon, DDPMVelocity

SCHEDULES = ("linear", "scaled_linear")
T = 1000


def objective(kind: type[DDPM], schedule: str) -> DDPM:
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule=schedule, timesteps=T)


def at_every_timestep(variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """x0 of this variance, noise and t: 256 numbers at each of the 1,000 timesteps."""
    random = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(T, 4, 8, 8, generator=random) for _ in range(2))
    return x0 * variance**0.5, noise, torch.arange(T)


def alpha_bar(schedule: str) -> np.ndarray:
    """ᾱ in double precision, from its definition."""
    if schedule == "linear":
        betas = np.linspace(0.00085, 0.012, T)
    else:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2
    return np.cumprod(1 - betas)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_corruption_and_velocity_are_diffusers(schedule: str) -> None:
    from diffusers import DDPMScheduler

    ours = objective(DDPMVelocity, schedule)
    theirs = DDPMScheduler(T, beta_start=0.00085, beta_end=0.012, beta_schedule=schedule)
    x0, noise, t = at_every_timestep(1.0)
    torch.testing.assert_close(ours.corrupt(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.target(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_bar_is_its_definition(schedule: str) -> None:
    np.testing.assert_allclose(objective(DDPMVelocity, schedule).alphas_cumprod, alpha_bar(schedule), rtol=2e-5)


def test_alpha_bar_halfway_is_as_the_errata_say() -> None:
    halfway = {s: round(float(objective(DDPMVelocity, s).alphas_cumprod[499]), 3) for s in SCHEDULES}
    assert halfway == {"linear": 0.162, "scaled_linear": 0.278}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [DDPMVelocity, DDPMEpsilon])
def test_targets_lead_back_to_x0_and_velocity(kind: type[DDPM], schedule: str) -> None:
    chosen = objective(kind, schedule)
    x0, noise, t = at_every_timestep(1.0)
    x_t, target = chosen.corrupt(x0, noise, t), chosen.target(x0, noise, t)
    torch.testing.assert_close(chosen.to_x0(x_t, target, t), x0, rtol=0, atol=5e-5)
    velocity = objective(DDPMVelocity, schedule).target(x0, noise, t)
    torch.testing.assert_close(chosen.to_velocity(x_t, target, t), velocity, rtol=0, atol=5e-5)


def test_epsilons_target_is_the_noise() -> None:
    x0, noise, t = at_every_timestep(1.0)
    assert torch.equal(objective(DDPMEpsilon, "linear").target(x0, noise, t), noise)


@pytest.mark.parametrize("variance", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_predictors_loss_under_v(schedule: str, variance: float) -> None:
    """E‖v‖² = ᾱ·1 + (1−ᾱ)·Var(x0)."""
    bar = alpha_bar(schedule)
    closed_form = (bar + (1 - bar) * variance).mean()
    x0, noise, t = at_every_timestep(variance)
    target = objective(DDPMVelocity, schedule).target(x0, noise, t)
    drawn = diffusion_loss(torch.zeros_like(target), target).mean().item()
    assert drawn == pytest.approx(closed_form, abs=0.01)


@pytest.mark.parametrize("variance", [0.8, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_epsilon_scored_as_v(schedule: str, variance: float) -> None:
    """E‖ε − v‖² = (1−√ᾱ)² + (1−ᾱ)·Var(x0): between 0.82 and 1.09 (ERRATA), so 1.67 is no healthy loss."""
    bar = alpha_bar(schedule)
    closed_form = ((1 - np.sqrt(bar)) ** 2 + (1 - bar) * variance).mean()
    x0, noise, t = at_every_timestep(variance)
    target = objective(DDPMVelocity, schedule).target(x0, noise, t)
    drawn = diffusion_loss(noise, target).mean().item()
    assert drawn == pytest.approx(closed_form, abs=0.01)
    assert 0.82 <= round(closed_form, 2) <= 1.09


def test_the_erratas_range_is_reached() -> None:
    values = []
    for schedule in SCHEDULES:
        bar = alpha_bar(schedule)
        values += [((1 - np.sqrt(bar)) ** 2 + (1 - bar) * variance).mean() for variance in (0.8, 1.0)]
    assert (round(min(values), 2), round(max(values), 2)) == (0.82, 1.09)


def test_timesteps_are_uniform_and_within_range() -> None:
    chosen, rng = objective(DDPMVelocity, "linear"), np.random.default_rng(0)
    t = np.array([chosen.sample_t(rng) for _ in range(20_000)])
    assert (t.min(), t.max()) == (0, T - 1)
    tenths = np.bincount(t // 100, minlength=10) / len(t)
    np.testing.assert_allclose(tenths, 0.1, atol=0.01)


def test_the_time_fraction_is_below_one() -> None:
    fractions = objective(DDPMVelocity, "linear").time_fraction(torch.tensor([0, 500, 999])).tolist()
    assert fractions == [0.0, 0.5, 0.999]
