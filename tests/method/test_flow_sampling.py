"""Samplers of a flow, compared with closed forms: for Gaussian data every step is linear, so its variance is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from class_ids import ids_of, of_ids
from torch import Tensor, nn

from urepa.core import random_draws
from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.types import Denoised
from urepa.method.ddpm_sampling import choose_sampler, sample_by, sample_images
from urepa.method.objectives.ddpm_math import VelocityMath
from urepa.method.objectives.flow_math import FlowMath

LINEAR = FlowMath("linear", "uniform")
STD = 0.5  # of the data


class Gaussian(nn.Module):
    """E[α̇·x0 + σ̇·ε | x_t] for x0 ~ N(0, STD²). Records its calls."""

    def __init__(self, flow: FlowMath) -> None:
        super().__init__()
        self.flow = flow
        self.asked: list[tuple[float, int]] = []

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        assert x_t.dtype == t_B.dtype == torch.float32
        self.asked.append((float(t_B[0]), len(x_t)))
        signal, sigma, d_signal, d_sigma = self.flow.path(t_B.double().view(-1, 1, 1, 1))
        slope = (signal * d_signal * STD**2 + sigma * d_sigma) / (signal**2 * STD**2 + sigma**2)
        return Denoised(slope * x_t)


class OneHot:
    """Replaces an image's generator: its noise is 0, except for the draw of one number."""

    def __init__(self, at: int | None) -> None:
        self.at, self.drawn = at, 0

    def standard_normal(self, shape: Any, dtype: Any) -> np.ndarray:
        value = float(self.drawn == self.at)
        self.drawn += 1
        return np.full(shape, value, dtype)


def final_std(flow: FlowMath, sampler: str, steps: int) -> float:
    """The standard deviation that a sampler makes of unit-variance noise: the responses to its independent noises,
    squared and added. Image 0 responds to the initial noise, image i + 1 to the noise of step i."""
    first = torch.zeros(steps + 1, 1, 1, 1)
    first[0] = 1.0
    rngs: list[Any] = [OneHot(None), *(OneHot(i) for i in range(steps))]
    condition = of_ids(torch.zeros(steps + 1).long(), 1)
    x0 = sample_by(Gaussian(flow), flow, first, condition, rngs, sampler, steps, 1.0)
    return float(x0.double().square().sum().sqrt())


@pytest.mark.parametrize(("sampler", "std"), [("sde", 0.4943), ("euler", 0.4970), ("heun", 0.5000)])
def test_the_variance_of_gaussian_data_is_the_specs(sampler: str, std: float) -> None:
    assert final_std(LINEAR, sampler, 250) == pytest.approx(std, abs=1e-4)


Slope = Callable[[float], float]  # a(t) of dx/dt = a(t)·x


def on_paper(path: str) -> tuple[Slope, Slope]:
    """For Gaussian data: the factors of x in the velocity and in the score, with α and σ written out."""

    def of(t: float) -> tuple[float, float, float, float]:
        if path == "linear":
            return 1 - t, t, -1.0, 1.0
        quarter = math.pi / 2
        signal, sigma = math.cos(quarter * t), math.sin(quarter * t)
        return signal, sigma, -quarter * sigma, quarter * signal

    def variance(t: float) -> float:
        signal, sigma, _, _ = of(t)
        return signal**2 * STD**2 + sigma**2

    def velocity(t: float) -> float:
        signal, sigma, d_signal, d_sigma = of(t)
        return (signal * d_signal * STD**2 + sigma * d_sigma) / variance(t)

    return velocity, lambda t: -1 / variance(t)


def ode_by_hand(velocity: Slope, sampler: str, steps: int) -> float:
    """The result of x = 1: a product of one factor per step."""
    x = 1.0
    for i in range(steps):
        t, after = 1 - i / steps, 1 - (i + 1) / steps
        slope = velocity(t)
        if sampler == "heun" and i < steps - 1:
            slope = (slope + velocity(after) * (1 + (after - t) * slope)) / 2
        x *= 1 + (after - t) * slope
    return abs(x)


def sde_by_hand(velocity: Slope, score: Slope, steps: int) -> float:
    """The variance step by step: x ← x·(1 + (v − w·s/2)·dt) + √(w·|dt|)·ξ with w = 2t."""
    times = [*np.linspace(1, 0.04, steps), 0.0]
    variance = 1.0
    for i in range(steps):
        t, dt = times[i], times[i + 1] - times[i]
        variance *= (1 + (velocity(t) - t * score(t)) * dt) ** 2
        variance += 2 * t * -dt * (i < steps - 1)
    return float(np.sqrt(variance))


@pytest.mark.fast(1)
@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_odes_steps_follow_the_formula(sampler: str, path: str) -> None:
    velocity, _ = on_paper(path)
    for steps in (1, 2, 7, 30, 333, 999):
        found = final_std(FlowMath(path, "uniform"), sampler, steps)
        assert found == pytest.approx(ode_by_hand(velocity, sampler, steps), abs=2e-6), steps


@pytest.mark.fast(4)
@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 333, pytest.param(999, marks=pytest.mark.slow)])
def test_the_sdes_steps_follow_the_formula(steps: int, path: str) -> None:
    expected = sde_by_hand(*on_paper(path), steps)
    assert final_std(FlowMath(path, "uniform"), "sde", steps) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_method(sampler: str, order: int, path: str) -> None:
    flow = FlowMath(path, "uniform")
    errors = [abs(final_std(flow, sampler, n) - STD) for n in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


@pytest.mark.slow
def test_the_sde_reaches_the_data_on_the_cosine_path_too() -> None:
    assert final_std(FlowMath("cosine", "uniform"), "sde", 400) == pytest.approx(STD, abs=0.01)


def test_steps_and_evaluations() -> None:
    for sampler, times in (
        ("euler", [1, 0.75, 0.5, 0.25]),
        ("heun", [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
        ("sde", [1, 0.68, 0.36, 0.04]),
    ):
        model = Gaussian(LINEAR)
        rngs: list[Any] = [np.random.default_rng(0)]
        sample_by(model, LINEAR, torch.ones(1, 1, 2, 2), of_ids(torch.zeros(1).long(), 1), rngs, sampler, 4, 1.0)
        assert [t for t, _ in model.asked] == pytest.approx(times), sampler


class ByClass(nn.Module):
    """A velocity of 1 for the null condition, and 1 + id for a class."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[float, int]] = []

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        self.batches.append((float(t_B[0]), len(x_t)))
        ids = ids_of(condition, 0).float()
        return Denoised((1 + ids).view(-1, 1, 1, 1).expand_as(x_t))


@pytest.mark.parametrize(
    ("interval", "guided_steps"), [((0.0, 1.0), 4), ((0.0, 0.7), 2), ((0.4, 0.8), 2), ((0.9, 0.95), 0)]
)
def test_guidance_applies_within_its_interval(interval: tuple[float, float], guided_steps: int) -> None:
    """Each quarter step adds a quarter of v: 1 + id, or 1 + 3·id with guidance."""
    model, ids = ByClass(), torch.tensor([1, 2])
    x0 = sample_by(model, LINEAR, torch.zeros(2, 1, 1, 1), of_ids(ids, 9), [], "euler", 4, 3.0, interval)
    expected = [-sum(1 + (3 if i < guided_steps else 1) * c for i in range(4)) / 4 for c in (1, 2)]
    assert x0.flatten().tolist() == pytest.approx(expected)
    assert [n for _, n in model.batches].count(4) == guided_steps
    assert all(n == 4 for t, n in model.batches if interval[0] <= t <= interval[1])


def test_without_guidance_the_null_pass_is_left_out() -> None:
    model = ByClass()
    sample_by(model, LINEAR, torch.zeros(2, 1, 1, 1), of_ids(torch.tensor([1, 2]), 9), [], "heun", 2, 1.0)
    assert {n for _, n in model.batches} == {2}


def test_the_state_is_kept_in_double_precision() -> None:
    """A velocity far below fp32's resolution at x = 1 still adds up over 1,000 steps."""

    class Slow(nn.Module):
        def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
            return Denoised(torch.full_like(x_t, 1e-5))

    x0 = sample_by(Slow(), LINEAR, torch.ones(1, 1, 1, 1), of_ids(torch.zeros(1).long(), 1), [], "euler", 1000, 1.0)
    assert float(x0) == pytest.approx(1 - 1e-5, abs=2e-7)


@pytest.mark.parametrize("sampler", ["euler", "sde"])
def test_an_image_does_not_depend_on_the_others_of_its_batch(sampler: str) -> None:
    how: dict[str, Any] = {"sampler": sampler, "steps": 5, "guidance": 1.0}

    def made(images: list[tuple[int, int]], seed: int) -> Tensor:
        condition = of_ids(torch.tensor([class_id for class_id, _ in images]), 9)
        return sample_images(Gaussian(LINEAR), LINEAR, images, (1, 4, 4), condition, seed=seed, **how)

    together, alone = made([(3, 0), (1, 5), (1, 0)], 2), made([(1, 5)], 2)
    torch.testing.assert_close(alone[0], together[1])
    assert len({round(float(x.sum()), 4) for x in together}) == 3
    assert not torch.allclose(made([(1, 5)], 3), alone, atol=1e-2)


def test_the_sdes_noise_differs_from_the_initial_noise() -> None:
    drawn: list[Tensor] = []
    own, keep = random_draws.normal, lambda shape, rng: drawn.append(own(shape, rng)) or drawn[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_draws, "normal", keep)
        sample_images(
            Gaussian(LINEAR), LINEAR, [(0, 0)], (1, 4, 4), of_ids(torch.zeros(1).long(), 9),
            sampler="sde", steps=4, guidance=1.0, seed=0,
        )  # fmt: skip
    assert len(drawn) == 1 + 3  # the last step has none
    assert len({float(x.sum()) for x in drawn}) == 4


def test_an_objective_has_its_own_samplers() -> None:
    ddpm = VelocityMath(0.00085, 0.012, "linear", 1000)
    assert (choose_sampler(ddpm, None), choose_sampler(LINEAR, None)) == ("ddim", "euler")
    assert choose_sampler(LINEAR, "sde") == "sde"
    with pytest.raises(
        UserError, match="sampler=ddim cannot sample this run's objective; give one of euler, heun, sde"
    ):
        choose_sampler(LINEAR, "ddim")
    with pytest.raises(UserError, match="sampler=sde cannot sample this run's objective; give one of ddim, dpm"):
        choose_sampler(ddpm, "sde")
