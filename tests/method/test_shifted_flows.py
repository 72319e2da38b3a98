"""Flows at shifted times: the draws in closed form, and the times of sampling against diffusers' scheduler."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from urepa.config.declared import declaration_of
from urepa.config.parts import KINDS, target_of
from urepa.core.errors import UserError
from urepa.method.objectives.flow_shifted_math import (
    ShiftedFlowMath,
    SizeShiftedFlowMath,
    StepShiftedFlowMath,
    shifted,
)

CPU = torch.device("cpu")
LARGE, SMALL = (16, 128, 128), (16, 32, 48)
FLUX = (0.5, 1.15, 256, 4096, 2)


FLUX2 = ((8.73809524e-05, 1.89833333, 10), (0.00016927, 0.45666666, 200), 4300, 1)


def by_steps(draw: str = "uniform", mean: float = 0.0, std: float = 1.0) -> StepShiftedFlowMath:
    return StepShiftedFlowMath(draw, mean, std, *FLUX2)


def by_size(draw: str = "uniform", mean: float = 0.0, std: float = 1.0) -> SizeShiftedFlowMath:
    return SizeShiftedFlowMath(draw, mean, std, *FLUX)


def test_a_shift_is_that_of_the_paper() -> None:
    """t = s·u/(1 + (s − 1)·u): the ends stay, and odds of noise are s times as large."""
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    t = shifted(u, 3.0)
    assert (float(t[0]), float(t[-1])) == (0, 1)
    torch.testing.assert_close(t[1:-1] / (1 - t[1:-1]), 3 * u[1:-1] / (1 - u[1:-1]))
    assert torch.equal(shifted(u, 1.0), u)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "shape", "shift"),
    [
        (ShiftedFlowMath("logit_normal", 0.3, 0.7, 3.0, "even"), LARGE, 3.0),
        (by_size("logit_normal", 0.3, 0.7), LARGE, math.exp(1.15)),  # 4,096 tokens
        (by_size("logit_normal", 0.3, 0.7), SMALL, math.exp(0.5 + 0.65 * (384 - 256) / 3840)),
        (by_steps("logit_normal", 0.3, 0.7), (128, 64, 64), math.exp(0.00016927 * 4096 + 0.45666666)),
    ],
)
def test_logit_normal_times_are_normal_after_their_logit(flow: Any, shape: Any, shift: float) -> None:
    """With mean μ + log s, whatever the size."""
    rng = np.random.default_rng(0)
    t = np.array([flow.at_size(flow.sample_t(rng), shape) for _ in range(20_000)])
    logit = np.log(t / (1 - t))
    assert logit.mean() == pytest.approx(0.3 + math.log(shift), abs=0.02)
    assert logit.std() == pytest.approx(0.7, abs=0.02)


@pytest.mark.slow
def test_uniform_draws_are_shifted_too() -> None:
    """P(t < s/(1 + s)) is P(u < 1/2)."""
    flow, rng = ShiftedFlowMath("uniform", 0.0, 1.0, 3.0, "even"), np.random.default_rng(0)
    t = np.array([flow.at_size(flow.sample_t(rng), LARGE) for _ in range(20_000)])
    assert np.mean(t < 0.75) == pytest.approx(0.5, abs=0.02)
    assert 0 <= t.min() < t.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", [LARGE, SMALL])
@pytest.mark.parametrize("draw", ["uniform", "logit_normal"])
def test_weights_by_time_have_mean_one_at_every_size(draw: str, shape: Any) -> None:
    flow, rng = by_size(draw), np.random.default_rng(1)
    t = torch.tensor([flow.at_size(flow.sample_t(rng), shape) for _ in range(20_000)])
    assert float(flow.towards_data(t, 1.0, shape).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_times_of_sampling_are_those_of_diffusers_scheduler(steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    static.set_timesteps(steps)
    ours = ShiftedFlowMath("uniform", 0.0, 1.0, 3.0, "scheduler").sampling_times(steps, LARGE, CPU)
    torch.testing.assert_close(ours.float(), static.sigmas, rtol=0, atol=1e-6)
    static.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    even = ShiftedFlowMath("uniform", 0.0, 1.0, 3.0, "even").sampling_times(steps, LARGE, CPU)
    torch.testing.assert_close(even.float(), static.sigmas, rtol=0, atol=1e-6)
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for shape in (LARGE, SMALL):
        mu = calculate_shift(shape[1] * shape[2] // 4)
        dynamic.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        torch.testing.assert_close(
            by_size().sampling_times(steps, shape, CPU).float(), dynamic.sigmas, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("steps", [1, 4, 28, 200])
@pytest.mark.parametrize("shape", [(128, 64, 64), (128, 16, 24), (128, 64, 80)])
def test_times_by_the_number_of_steps_are_those_of_flux2(steps: int, shape: Any) -> None:
    """Also beyond 4,300 tokens, where the number of steps does not matter."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = compute_empirical_mu(shape[1] * shape[2], steps)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=mu)
    torch.testing.assert_close(
        by_steps().sampling_times(steps, shape, CPU).float(), scheduler.sigmas, rtol=0, atol=1e-6
    )


def test_the_setting_of_flux2_is_its_pipelines(compose: Any) -> None:
    flow = declaration_of(compose("objective=flow_flux2")["objective"]).build()
    assert (flow.few, flow.many, flow.most_tokens, flow.token_side) == FLUX2


def test_settings_without_an_effect_are_refused() -> None:
    target = target_of(KINDS["objective"]["flow_shifted"])
    settings = {"_target_": target, "draw": "uniform", "shift": 3.0, "grid": "even"}
    declaration_of(settings).check()
    with pytest.raises(UserError, match="^objective.draw_mean and draw_std are of objective.draw=logit_normal"):
        declaration_of(settings | {"draw_mean": 0.5}).check()
    target = target_of(KINDS["objective"]["flow_by_size"])
    ends = {"base_shift": 0.5, "max_shift": 1.15, "base_tokens": 4096, "max_tokens": 4096, "token_side": 2}
    with pytest.raises(UserError, match="^objective.base_tokens=4096 is not below objective.max_tokens=4096"):
        declaration_of({"_target_": target, "draw": "uniform", **ends}).check()
    lines = {
        "few_slope": 0.1,
        "few_offset": 1.0,
        "many_slope": 0.1,
        "many_offset": 0.5,
        "few_steps": 10,
        "many_steps": 10,
    }
    own = {"_target_": target_of(KINDS["objective"]["flow_by_steps"]), "most_tokens": 4300, "token_side": 1}
    with pytest.raises(UserError, match="^objective.few_steps=10 is not below objective.many_steps=10"):
        declaration_of(own | {"draw": "uniform"} | lines).check()
