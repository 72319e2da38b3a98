"""The error of denoised images at given noise-to-signal ratios, by hand and under several objectives.

Shapes: B samples, CHW latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.types import Denoised
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples
from urepa.evaluation.measures.denoising import Denoising
from urepa.evaluation.measures.denoising_math import time_at_ratio
from urepa.method.objectives.ddpm_math import EpsilonMath, VelocityMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.objectives.flow_shifted_math import ShiftedFlowMath

BETAS: Any = (0.0001, 0.02, "linear", 1000)
OBJECTIVES = {
    "epsilon": EpsilonMath(*BETAS),
    "velocity": VelocityMath(*BETAS),
    "linear": FlowMath("linear", "uniform"),
    "cosine": FlowMath("cosine", "uniform"),
    "shifted": ShiftedFlowMath("logit_normal", 0.0, 1.0, 3.0, "scheduler"),
}
RATIOS = [0.25, 1.0, 4.0]


class Linear(nn.Module):
    """Predicts, in the objective's own form, x0 = x_t / α divided by 1 + (σ/α)²: the best linear denoiser of x0 of unit
    variance. It is the same function of the noise-to-signal ratio under every objective."""

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Any) -> Denoised:
        signal, sigma = self.objective.signal_and_noise(t_B)
        x0 = x_t / signal / (1 + (sigma / signal) ** 2)
        noise = (x_t - signal * x0) / sigma
        return Denoised(self.objective.target(x0, noise, t_B), {})


def measured(context: Context, objective: Any, **settings: Any) -> dict[str, float]:
    model: Any = type("Model", (), {"backbone": Linear(objective)})
    asked = Denoising(**{"ratios": RATIOS, "images": 12} | settings)
    return asked(replace(context, model=model, objective=objective))


@pytest.mark.slow
def test_one_denoiser_has_one_error_under_every_objective(context: Context) -> None:
    """A timestep's ratio is not exactly the asked one, which moves the error by a percent at most."""
    expected = measured(context, OBJECTIVES["linear"])
    samples = held_out_samples(context)
    x0 = context.cache.x0(samples).double()
    floor = (x0 - x0.mean(0)).pow(2).mean()
    assert measured(context, OBJECTIVES["linear"], images=len(samples))["final/floor/x0_error"] == pytest.approx(floor)
    for name, objective in OBJECTIVES.items():
        found = measured(context, objective)
        rounded = 0.02 if name in ("epsilon", "velocity") else 1e-4
        assert found == pytest.approx(expected, rel=rounded), name
    by_ratio = [expected[f"final/x0_error/{ratio:g}"] for ratio in RATIOS]
    assert by_ratio == sorted(by_ratio)
    assert expected["final/x0_error"] == pytest.approx(sum(by_ratio) / 3)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_time_has_the_asked_ratio(name: str, ratio: float) -> None:
    objective = OBJECTIVES[name]
    time = time_at_ratio(objective, ratio)
    assert objective.has_time(time.reshape(1))
    signal, sigma = objective.signal_and_noise(time.reshape(1))
    assert float(sigma / signal) == pytest.approx(ratio, rel=0.02 if name in ("epsilon", "velocity") else 1e-5)
    if name in ("linear", "shifted"):
        assert float(time) == pytest.approx(ratio / (1 + ratio))


def test_a_ratio_that_no_time_has_is_refused() -> None:
    with pytest.raises(UserError, match="no time with a noise-to-signal ratio of 1000; the nearest one has 157"):
        time_at_ratio(OBJECTIVES["epsilon"], 1000.0)


@pytest.mark.slow
def test_a_real_model_is_measured(make_context: Callable[..., Context]) -> None:
    """Of the quickstart, with classes as conditions."""
    context = make_context()
    found = Denoising(ratios=[1.0], images=8)(context)
    assert found.keys() == {"final/x0_error", "final/x0_error/1", "final/floor/x0_error"}
    assert found == Denoising(ratios=[1.0], images=8)(context)
    assert all(torch.isfinite(torch.tensor(value)) for value in found.values())
