"""Objectives whose loss is not the plain squared error: Min-SNR, prediction of the data with the velocity's loss, and
contrastive flow matching, compared with their papers' formulas and with the lines of JiT's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from class_ids import of_ids
from torch import Tensor, nn

from urepa.config.alterations import alters
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.core.types import Denoised
from urepa.method.flow_sampling import sample
from urepa.method.losses.loss_math import diffusion_loss
from urepa.method.objectives.ddpm_math import DDPMMath, EpsilonMath, VelocityMath
from urepa.method.objectives.flow_contrastive_math import FlowContrastiveMath, partners
from urepa.method.objectives.flow_data_math import FlowDataMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.training.checks.combinations import check

Build = Callable[..., Any]
BETAS = (0.00085, 0.012, "linear", 1000)
TIMES = torch.tensor([0, 1, 40, 250, 600, 999])


def drawn(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x0, noise and a prediction."""
    random = torch.Generator().manual_seed(seed)
    x0, noise, prediction = (torch.randn(batch, 3, 4, 4, generator=random) for _ in range(3))
    return x0, noise, prediction


# --- Min-SNR -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EpsilonMath, VelocityMath])
def test_min_snr_weights_are_the_papers(kind: type[DDPMMath]) -> None:
    """min(SNR, γ)/SNR for ε and min(SNR, γ)/(SNR + 1) for v, in double precision from β."""
    alpha_bar = np.cumprod(1 - np.linspace(0.00085, 0.012, 1000))
    snr = alpha_bar / (1 - alpha_bar)
    expected = np.minimum(snr, 5.0) / (snr if kind is EpsilonMath else snr + 1)
    own = kind(*BETAS, 5.0)
    found = own.loss_weight(torch.arange(1000))
    assert found is not None
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)
    x0, noise, prediction = drawn(6)
    target = own.target(x0, noise, TIMES)
    errors = ((prediction - target) ** 2).double().flatten(1).mean(1).numpy()
    terms = own.diffusion_terms(prediction, target, TIMES)
    np.testing.assert_allclose(terms.numpy(), expected[TIMES] * errors, rtol=1e-3)
    rows = torch.tensor([5, 1])
    torch.testing.assert_close(own.diffusion_terms(prediction[rows], target, TIMES, rows), terms[rows])


def test_min_snr_weighs_the_same_image_error_equally_for_both_targets() -> None:
    x0, noise, _ = drawn(5)
    t = TIMES[1:]
    guess = x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    terms = []
    for kind in (EpsilonMath, VelocityMath):
        own = kind(*BETAS, 5.0)
        signal, sigma = own.signal_and_noise(t)
        x_t = own.corrupt(x0, noise, t)
        implied_noise = (x_t - signal * guess) / sigma
        prediction = own.target(guess, implied_noise, t)
        terms.append(own.diffusion_terms(prediction, own.target(x0, noise, t), t))
    torch.testing.assert_close(terms[0], terms[1], rtol=2e-3, atol=0)
    alpha_bar = VelocityMath(*BETAS).alphas_cumprod[t]
    snr = (alpha_bar / (1 - alpha_bar)).clamp(max=5.0)
    torch.testing.assert_close(terms[1], snr * diffusion_loss(guess, x0), rtol=2e-3, atol=0)


def test_without_weights_the_terms_are_the_squared_errors_bit_for_bit() -> None:
    x0, noise, prediction = drawn(6)
    for own in (EpsilonMath(*BETAS), VelocityMath(*BETAS)):
        target = own.target(x0, noise, TIMES)
        assert torch.equal(own.diffusion_terms(prediction, target, TIMES), diffusion_loss(prediction, target))


# --- prediction of the data ----------------------------------------------------------------------------------


def test_predicting_the_data_has_jits_loss() -> None:
    """As its code computes it, where t = 1 is the data: v = (x − z)/max(1 − t, 0.05) for target and prediction."""
    x0, noise, prediction = drawn(6)
    t = torch.tensor([0.0, 0.01, 0.05, 0.3, 0.8, 1.0])
    own = FlowDataMath("uniform", 0.05)
    theirs = 1 - t.view(-1, 1, 1, 1)
    z = theirs * x0 + (1 - theirs) * noise
    torch.testing.assert_close(own.corrupt(x0, noise, t), z)
    v, v_pred = ((x - z) / (1 - theirs).clamp_min(0.05) for x in (x0, prediction))
    torch.testing.assert_close(
        own.diffusion_terms(prediction, own.target(x0, noise, t), t),
        ((v - v_pred) ** 2).mean((1, 2, 3)),
        rtol=1e-4,
        atol=0,
    )
    torch.testing.assert_close(own.to_velocity(z, prediction, t), -v_pred)
    assert torch.equal(own.to_x0(z, prediction, t), prediction)
    later = t[2:]
    exact = FlowMath("linear", "uniform").target(x0, noise, t)[2:]
    torch.testing.assert_close(own.to_velocity(z[2:], x0[2:], later), exact, rtol=1e-4, atol=1e-5)


class Knows(nn.Module):
    """Predicts the same images at all times."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0 = x0

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Denoised:
        return Denoised(self.x0)


@pytest.mark.parametrize("sampler", ["euler", "heun", "sde"])
def test_samplers_take_the_velocity_that_predicted_data_implies(sampler: str) -> None:
    x0, noise, _ = drawn(2)
    condition = of_ids(torch.tensor([0, 1]), 3)
    rngs = [np.random.default_rng(i) for i in range(2)]
    flow = FlowDataMath("uniform", 0.01)
    found = sample(Knows(x0), flow, noise, condition, sampler, 50, {}, (0.0, 1.0), rngs)
    # the last step of SiT's SDE removes the noise at t = 0.04 in one step, and leaves as much of it
    torch.testing.assert_close(found, x0, atol=0.2 if sampler == "sde" else 0.02, rtol=0)


# --- contrastive ---------------------------------------------------------------------------------------------


def test_contrastive_terms_are_the_papers() -> None:
    x0, noise, prediction = drawn(6)
    t = torch.rand(6, generator=torch.Generator().manual_seed(1))
    own = FlowContrastiveMath("uniform", 0.05)
    target = own.target(x0, noise, t)
    found = own.diffusion_terms(prediction, target, t)
    for i, other in enumerate((1, 0, 3, 2, 5, 4)):
        near = ((prediction[i] - (noise[i] - x0[i])) ** 2).mean()
        far = ((prediction[i] - (noise[other] - x0[other])) ** 2).mean()
        torch.testing.assert_close(found[i], near - 0.05 * far)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(own.diffusion_terms(prediction[rows], target, t, rows), found[rows])
    halves = [own.diffusion_terms(prediction[part], target[part], t[part]) for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat(halves), found), "ranks and micro-batches have the same partners"
    assert torch.equal(
        FlowContrastiveMath("uniform", 0.0).diffusion_terms(prediction, target, t), diffusion_loss(prediction, target)
    )


def test_no_sample_is_its_own_partner() -> None:
    assert partners(4).tolist() == [1, 0, 3, 2]
    assert partners(5).tolist() == [1, 0, 3, 2, 3]
    x0, noise, prediction = drawn(1)
    own, t = FlowContrastiveMath("uniform", 0.05), torch.tensor([0.5])
    alone = own.diffusion_terms(prediction, own.target(x0, noise, t), t)
    assert torch.equal(alone, diffusion_loss(prediction, own.target(x0, noise, t)))


# --- configs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("objective=flow_contrastive", "trainer.batch_size=63"), "pairs neighbours.*63 at a time.*a multiple of 2"),
        (("objective=flow_contrastive", "objective.path=cosine"), "objective.path=cosine: .*give linear"),
        (("objective=flow_data", "objective.path=cosine"), "objective.path=cosine: .*give linear"),
    ],
)
def test_what_does_not_go_together_is_refused(compose: Build, overrides: tuple[str, ...], words: str) -> None:
    config = compose("+experiment=repa_cifar10_pixels", *overrides)
    with pytest.raises(UserError, match=words):
        check(config, ["+experiment=repa_cifar10_pixels", *overrides])


def test_their_diffusion_losses_are_not_compared_and_their_image_errors_are(compose: Build) -> None:
    def strings(*overrides: str) -> dict[str, str]:
        return {k: str(v) for k, v in flatten(compose(*overrides)).items()}

    plain, weighted = strings("objective=ddpm_v"), strings("objective=ddpm_v", "objective.min_snr=5")
    assert alters("objective.min_snr", plain, weighted) == {"diffusion", "total"}
    flow, data = strings("objective=flow"), strings("objective=flow_data")
    assert alters("objective._target_", flow, data) == {"diffusion", "total"}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["flow_data", "flow_contrastive", "ddpm_v"])
def test_a_run_trains_and_validates_by_the_weighted_loss(
    small_sit: list[str], trainer_of: Build, objective: str
) -> None:
    more = ["objective.min_snr=5"] if objective == "ddpm_v" else []
    trainer = trainer_of(*small_sit, f"objective={objective}", *more)
    batch = trainer.reader.read(0)[0]
    update = trainer.update(0, [batch], with_tap_gradients=False)
    target = trainer.objective.target(batch.x0, batch.noise, batch.t_B)
    assert update.terms.per_sample["diffusion"].isfinite().all()
    row = trainer.validate(1)
    first = trainer.validation.reader.read(0)
    assert row["floor/zero_predictor"] > 0
    assert target.shape == batch.x0.shape
    terms = trainer.objective.diffusion_terms(
        torch.zeros_like(first.x0), trainer.objective.target(first.x0, first.noise, first.t_B), first.t_B
    )
    second = trainer.validation.reader.read(1)
    more_terms = trainer.objective.diffusion_terms(
        torch.zeros_like(second.x0), trainer.objective.target(second.x0, second.noise, second.t_B), second.t_B
    )
    assert row["floor/zero_predictor"] == pytest.approx(torch.cat([terms, more_terms]).mean().item(), rel=1e-5)
