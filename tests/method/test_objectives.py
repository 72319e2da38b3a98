"""The objectives' targets, compared with diffusers and with closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from urepa.config import own_package
from urepa.config.conf_options import options_of
from urepa.config.declared import declaration_of
from urepa.config.parts import KINDS, target_of
from urepa.core.declared_keys import keys_of
from urepa.core.descriptions import Formula
from urepa.core.errors import UserError
from urepa.core.protocols import Objective
from urepa.method.ddpm_sampling import scheduler_for
from urepa.method.losses.loss_math import diffusion_loss
from urepa.method.objectives.ddpm_math import DDPMMath, EpsilonMath, VelocityMath
from urepa.method.objectives.flow_math import FlowMath

SCHEDULES = ("linear", "scaled_linear")
T = 1000


def objective(kind: type[DDPMMath], schedule: str) -> DDPMMath:
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule=schedule, timesteps=T)


def at_every_timestep(variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """x0 with a given variance, noise and t: 256 numbers at each of the 1,000 timesteps."""
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

    ours = objective(VelocityMath, schedule)
    theirs = DDPMScheduler(T, beta_start=0.00085, beta_end=0.012, beta_schedule=schedule)
    x0, noise, t = at_every_timestep(1.0)
    torch.testing.assert_close(ours.corrupt(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.target(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_bar_is_its_definition(schedule: str) -> None:
    np.testing.assert_allclose(objective(VelocityMath, schedule).alphas_cumprod, alpha_bar(schedule), rtol=2e-5)


def test_alpha_bar_halfway_is_as_the_errata_say() -> None:
    halfway = {s: round(float(objective(VelocityMath, s).alphas_cumprod[499]), 3) for s in SCHEDULES}
    assert halfway == {"linear": 0.162, "scaled_linear": 0.278}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [VelocityMath, EpsilonMath])
def test_targets_lead_back_to_x0_and_velocity(kind: type[DDPMMath], schedule: str) -> None:
    chosen = objective(kind, schedule)
    x0, noise, t = at_every_timestep(1.0)
    x_t, target = chosen.corrupt(x0, noise, t), chosen.target(x0, noise, t)
    torch.testing.assert_close(chosen.to_x0(x_t, target, t), x0, rtol=0, atol=5e-5)
    velocity = objective(VelocityMath, schedule).target(x0, noise, t)
    torch.testing.assert_close(chosen.to_velocity(x_t, target, t), velocity, rtol=0, atol=5e-5)


def test_epsilons_target_is_the_noise() -> None:
    x0, noise, t = at_every_timestep(1.0)
    assert torch.equal(objective(EpsilonMath, "linear").target(x0, noise, t), noise)


@pytest.mark.parametrize("variance", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_predictors_loss_under_v(schedule: str, variance: float) -> None:
    """E‖v‖² = ᾱ·1 + (1−ᾱ)·Var(x0)."""
    bar = alpha_bar(schedule)
    closed_form = (bar + (1 - bar) * variance).mean()
    x0, noise, t = at_every_timestep(variance)
    target = objective(VelocityMath, schedule).target(x0, noise, t)
    drawn = diffusion_loss(torch.zeros_like(target), target).mean().item()
    assert drawn == pytest.approx(closed_form, abs=0.01)


@pytest.mark.parametrize("variance", [0.8, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_epsilon_scored_as_v(schedule: str, variance: float) -> None:
    """E‖ε − v‖² = (1−√ᾱ)² + (1−ᾱ)·Var(x0): between 0.82 and 1.09 (docs/errata.md), so 1.67 is not a healthy loss."""
    bar = alpha_bar(schedule)
    closed_form = ((1 - np.sqrt(bar)) ** 2 + (1 - bar) * variance).mean()
    x0, noise, t = at_every_timestep(variance)
    target = objective(VelocityMath, schedule).target(x0, noise, t)
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
    chosen, rng = objective(VelocityMath, "linear"), np.random.default_rng(0)
    t = np.array([chosen.sample_t(rng) for _ in range(20_000)])
    assert (t.min(), t.max()) == (0, T - 1)
    tenths = np.bincount(t // 100, minlength=10) / len(t)
    np.testing.assert_allclose(tenths, 0.1, atol=0.01)


def test_the_time_fraction_is_below_one() -> None:
    fractions = objective(VelocityMath, "linear").time_fraction(torch.tensor([0, 500, 999])).tolist()
    assert fractions == [0.0, 0.5, 0.999]


# --- flow ---------------------------------------------------------------------------------------------------

SHAPE = (4, 8, 8)  # of latents
TIMES = torch.tensor([0.0, 0.25, 0.5, 0.731, 1.0], dtype=torch.float64)


def flow_pair() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(len(TIMES), 4, 8, 8, generator=random, dtype=torch.float64) for _ in range(2))
    return x0, noise


def test_the_linear_path_follows_its_formula() -> None:
    flow, (x0, noise), t = FlowMath("linear", "uniform"), flow_pair(), TIMES.view(-1, 1, 1, 1)
    assert torch.equal(flow.corrupt(x0, noise, TIMES), (1 - t) * x0 + t * noise)
    assert torch.equal(flow.target(x0, noise, TIMES), noise - x0)
    x_t, v = flow.corrupt(x0, noise, TIMES)[1:], (noise - x0)[1:]
    torch.testing.assert_close(flow.score(x_t, v, TIMES[1:]), (-(1 - t[1:]) * v - x_t) / t[1:])


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_target_is_the_derivative_of_the_path(path: str) -> None:
    """Central differences, exact to h² for a smooth path."""
    flow, (x0, noise), h = FlowMath(path, "uniform"), flow_pair(), 1e-5
    slope = (flow.corrupt(x0, noise, TIMES + h) - flow.corrupt(x0, noise, TIMES - h)) / (2 * h)
    torch.testing.assert_close(flow.target(x0, noise, TIMES), slope, rtol=0, atol=1e-8)


def test_the_cosine_path_keeps_unit_variance() -> None:
    signal, sigma = FlowMath("cosine", "uniform").signal_and_noise(TIMES)
    torch.testing.assert_close(signal**2 + sigma**2, torch.ones_like(signal))
    assert signal.flatten()[[0, -1]].tolist() == pytest.approx([1, 0], abs=1e-12)
    torch.testing.assert_close(sigma.flatten(), torch.sin(math.pi / 2 * TIMES))


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_a_velocity_leads_back_to_x0_noise_and_score(path: str) -> None:
    flow, (x0, noise) = FlowMath(path, "uniform"), flow_pair()
    x_t, v = flow.corrupt(x0, noise, TIMES), flow.target(x0, noise, TIMES)
    torch.testing.assert_close(flow.to_x0(x_t, v, TIMES), x0)
    torch.testing.assert_close(flow.to_noise(x_t, v, TIMES), noise)
    assert flow.to_velocity(x_t, v, TIMES) is v
    _, sigma = flow.signal_and_noise(TIMES[1:])
    torch.testing.assert_close(flow.score(x_t[1:], v[1:], TIMES[1:]), -noise[1:] / sigma)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_score_is_the_gradient_of_the_log_density(path: str) -> None:
    """Data N(0, s²): p_t is N(0, (αs)² + σ²), and E[v | x_t] gives its score exactly."""
    flow, s2 = FlowMath(path, "uniform"), 0.25
    signal, sigma, d_signal, d_sigma = flow.path(TIMES[1:])
    variance = signal**2 * s2 + sigma**2
    x_t = torch.linspace(-2, 2, len(TIMES) - 1, dtype=torch.float64).view(-1, 1, 1, 1)
    slope = ((signal * d_signal * s2 + sigma * d_sigma) / variance).view(-1, 1, 1, 1)
    score = flow.score(x_t, slope * x_t, TIMES[1:])
    torch.testing.assert_close(score, -x_t / variance.view(-1, 1, 1, 1))


def drawn(path: str, draw: str, count: int = 20_000) -> np.ndarray:
    flow, rng = FlowMath(path, draw), np.random.default_rng(0)
    return np.array([flow.sample_t(rng) for _ in range(count)])


def test_flow_times_are_uniform() -> None:
    t = drawn("linear", "uniform")
    np.testing.assert_allclose(np.histogram(t, 10, (0, 1))[0] / len(t), 0.1, atol=0.01)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_lognormal_times_have_a_normal_log_ratio_of_noise_to_signal(path: str) -> None:
    t = torch.from_numpy(drawn(path, "lognormal"))
    signal, sigma = FlowMath(path, "lognormal").signal_and_noise(t)
    log_ratio = (sigma / signal).log().flatten().numpy()
    assert (log_ratio.mean(), log_ratio.std()) == pytest.approx((0, 1), abs=0.02)
    assert (np.abs(log_ratio) < 1).mean() == pytest.approx(0.6827, abs=0.01)


def test_lognormal_times_follow_their_formula() -> None:
    rng = np.random.default_rng(3)
    sigma = math.exp(np.random.default_rng(3).standard_normal())
    assert FlowMath("linear", "lognormal").sample_t(rng) == pytest.approx(sigma / (1 + sigma))
    rng = np.random.default_rng(3)
    assert FlowMath("cosine", "lognormal").sample_t(rng) == pytest.approx(2 / math.pi * math.atan(sigma))


def test_mode_times_are_stable_diffusion_3s() -> None:
    """Of a uniform u, with s = 1.29; all of [0, 1], and most of it in the middle."""
    u = np.random.default_rng(3).random()
    t = FlowMath("linear", "mode").sample_t(np.random.default_rng(3))
    assert t == pytest.approx(1 - u - 1.29 * (math.cos(math.pi / 2 * u) ** 2 - 1 + u))
    times = drawn("linear", "mode")
    counts = np.histogram(times, 10, (0, 1))[0] / len(times)
    assert counts.sum() == pytest.approx(1)
    np.testing.assert_allclose(counts, counts[::-1], atol=0.01)
    assert 0.03 < counts[0] < 0.1 < counts[4]


def test_every_time_has_a_bin() -> None:
    fractions = FlowMath("linear", "uniform").time_fraction(torch.tensor([0.0, 0.55, 1.0]))
    assert (fractions * 10).long().tolist() == [0, 5, 9]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_the_time_at_a_fraction_of_the_way_to_noise(fraction: float) -> None:
    for chosen in (objective(VelocityMath, "linear"), FlowMath("linear", "uniform")):
        t = torch.tensor([chosen.time_at(fraction)])
        assert chosen.has_time(t)
        assert chosen.time_fraction(t).item() == pytest.approx(fraction, abs=1e-6)


def test_times_of_another_objective_are_invalid() -> None:
    ddpm, flow = objective(VelocityMath, "linear"), FlowMath("linear", "uniform")
    assert [ddpm.has_time(torch.tensor([0, t])) for t in (-1, 999, 1000, 0.5)] == [False, True, False, False]
    assert [flow.has_time(torch.tensor([0.5, t])) for t in (-0.1, 0.0, 1.0, 1.1)] == [False, True, True, False]
    assert not flow.has_time(torch.tensor([0]))


# --- weights of times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_on_the_linear_path_a_weight_is_a_power_of_1_minus_t(power: float) -> None:
    t = torch.rand(1000)
    weight = FlowMath("linear", "uniform").towards_data(t, power, SHAPE)
    torch.testing.assert_close(weight, (power + 1) * (1 - t) ** power, rtol=1e-4, atol=0)
    if power == 0:
        assert torch.equal(weight, torch.ones(1000))


@pytest.mark.parametrize("kind", ["linear uniform", "linear lognormal", "cosine uniform", "cosine lognormal", "DDPM"])
def test_a_weight_has_mean_one_over_the_times_that_are_drawn(kind: str) -> None:
    """Apart from that factor, equal shares of noise have equal weights."""
    own = objective(VelocityMath, "linear") if kind == "DDPM" else FlowMath(*kind.split())
    rng = np.random.default_rng(0)
    t = torch.tensor([own.sample_t(rng) for _ in range(20_000)])
    weight = own.towards_data(t, 2.0, SHAPE).double()
    assert weight.mean().item() == pytest.approx(1, abs=4 * weight.std().item() / 20_000**0.5)
    signal, sigma = own.signal_and_noise(t)
    share = (signal / (signal + sigma)).flatten().double()
    torch.testing.assert_close(weight / weight.max(), (share / share.max()) ** 2, rtol=1e-4, atol=1e-7)


def test_a_lognormal_draws_mean_weight_is_the_logistic_normals() -> None:
    """E[sigmoid(N)] = 1/2 for every path: the weight of a sample without noise is 2."""
    for path in ("linear", "cosine"):
        weight = FlowMath(path, "lognormal").towards_data(torch.tensor([0.0, 1.0]), 1.0, SHAPE)
        torch.testing.assert_close(weight, torch.tensor([2.0, 0.0]), rtol=1e-4, atol=1e-6)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timesteps": 400}


def declared(name: str, **settings: Any) -> Objective:
    found: Objective = declaration_of({"_target_": target_of(KINDS["objective"][name])} | settings)
    return found


@pytest.mark.parametrize("option", options_of("objective"))
def test_a_declared_objective_is_what_the_protocol_says(compose: Callable[..., Any], option: str) -> None:
    """A declaration agrees with the mathematics that it builds, which checks before torch cannot use."""
    own: Objective = declaration_of(compose(f"objective={option}")["objective"])
    assert own_package._members(Objective) <= set(dir(own))
    mathematics = own.build()
    assert own.prediction_type == getattr(mathematics, "prediction_type", "flow")
    assert own.most_steps == mathematics.most_steps
    assert own.time_at(0.5) == mathematics.time_at(0.5)
    assert own.has_time(own.time_at(0.5))
    for t in (-1, 0, 1, 0.25, 999, 1000):
        assert own.has_time(t) == mathematics.has_time(mathematics.times_of(t)), t
    assert own.has_intervals == isinstance(mathematics, FlowMath)
    assert {*own.training_only} <= {key.name for key in keys_of(type(own))}
    assert bool(own.scheduler) == isinstance(mathematics, DDPMMath)
    if own.scheduler:
        theirs = scheduler_for(mathematics, "ddim").config
        for key, name in own.scheduler.items():
            assert theirs[key] == getattr(own, name)
        assert own.scheduler.keys() == {"beta_start", "beta_end", "beta_schedule", "num_train_timesteps"}
        assert theirs["prediction_type"] == own.prediction_type
    own.check()
    words, *more = own.description()
    assert isinstance(words, str)
    assert all(isinstance(one, str | Formula) for one in more)
    assert own.model_card().startswith("**")


def test_decreasing_betas_are_refused() -> None:
    for name in ("ddpm_epsilon", "ddpm_velocity"):
        declared(name, **BETAS | {"beta_start": 0.012}).check()
        with pytest.raises(
            UserError, match=r"^objective.beta_start=0.2 is above objective.beta_end=0.012; give a smaller"
        ):
            declared(name, **BETAS | {"beta_start": 0.2}).check()


@pytest.mark.slow
def test_every_file_declares_an_objective_that_can_be_chosen_and_loads_without_torch(
    compose: Callable[..., Any],
) -> None:
    asked = {compose(f"objective={option}")["objective"]["_target_"] for option in options_of("objective")}
    assert asked == {target_of(one) for one in KINDS["objective"].values()}
    code = "import sys; from urepa.config.parts import KINDS; assert KINDS['objective'] and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
