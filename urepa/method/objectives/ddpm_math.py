"""The mathematics of `ddpm_epsilon` and `ddpm_velocity`.

Shapes: B batch. x_t = α·x0 + σ·ε with α = √ᾱ_t, σ = √(1−ᾱ_t) (Ho et al. 2020, eq. 4); timesteps are
int64 in [0, T-1].
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from urepa.method.objectives.objective_math import ObjectiveMath


class DDPMMath(ObjectiveMath):
    """The variance-preserving corruption, shared by the ε- and the v-target.

    Args:
        beta_start, beta_end: end points of β, in (0,1).
        beta_schedule: "linear" in β or "scaled_linear", linear in √β (SD-1.5's own).
        timesteps: T.
        min_snr: γ of the Min-SNR weights (Hang et al. 2023, arXiv 2303.09556, §3.4); None: all weights are 1.
    """

    prediction_type: str
    samplers = ("ddim", "dpmsolver", "euler")

    def __init__(
        self, beta_start: float, beta_end: float, beta_schedule: str, timesteps: int, min_snr: float | None = None
    ) -> None:
        self.beta_start, self.beta_end = beta_start, beta_end
        self.beta_schedule, self.timesteps = beta_schedule, timesteps
        power = {"linear": 1.0, "scaled_linear": 2.0}[beta_schedule]
        ends = beta_start ** (1 / power), beta_end ** (1 / power)
        betas = torch.linspace(*ends, timesteps, dtype=torch.float32) ** power
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self.most_steps, self.min_snr = timesteps, min_snr
        self._train_at(torch.arange(timesteps))
        self.times = f"whole timesteps from 0 to {timesteps - 1}"

    def sample_t(self, rng: np.random.Generator) -> int:
        """One timestep, uniform over 0..T-1."""
        return int(rng.integers(self.timesteps))

    def has_time(self, t_B: Tensor) -> bool:
        return not t_B.is_floating_point() and bool((t_B >= 0).all() and (t_B < self.timesteps).all())

    def time_at(self, fraction: float) -> int:
        return int(fraction * self.timesteps)

    def time_fraction(self, t_B: Tensor) -> Tensor:
        return t_B.double() / self.timesteps

    def signal_and_noise(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar_B = self.alphas_cumprod.to(t_B.device)[t_B].view(-1, 1, 1, 1)
        return alpha_bar_B**0.5, (1.0 - alpha_bar_B) ** 0.5

    def loss_weight(self, t_B: Tensor) -> Tensor | None:
        """min(SNR, γ) times the factor between the target's squared error and x0's, with SNR = ᾱ/(1−ᾱ)."""
        if self.min_snr is None:
            return None
        alpha_bar_B = self.alphas_cumprod.to(t_B.device)[t_B]
        snr_B = alpha_bar_B / (1 - alpha_bar_B)
        return snr_B.clamp(max=self.min_snr) * self.x0_error_factor(snr_B)

    @abstractmethod
    def x0_error_factor(self, snr_B: Tensor) -> Tensor:
        """The squared error of the implied x0 over that of the prediction, at a signal-to-noise ratio."""

    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return self.implied_x0(x_t, prediction, *self.signal_and_noise(t_B))

    @abstractmethod
    def implied_x0(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The x0 that a prediction implies at α and σ, [B,1,1,1] or scalars."""

    @abstractmethod
    def implied_noise(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The ε that a prediction implies at α and σ, [B,1,1,1] or scalars."""


class VelocityMath(DDPMMath):
    """v = √ᾱ·ε − √(1−ᾱ)·x0 (Salimans & Ho 2022, §4)."""

    prediction_type = "v_prediction"

    def x0_error_factor(self, snr_B: Tensor) -> Tensor:
        return 1 / (snr_B + 1)

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return signal * noise - sigma * x0

    def implied_x0(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return signal * x_t - sigma * prediction

    def implied_noise(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return signal * prediction + sigma * x_t

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return prediction


class EpsilonMath(DDPMMath):
    """ε itself (Ho et al. 2020, eq. 14): what SD-1.5 was trained to predict."""

    prediction_type = "epsilon"

    def x0_error_factor(self, snr_B: Tensor) -> Tensor:
        return 1 / snr_B

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        return noise

    def implied_x0(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * prediction) / signal

    def implied_noise(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return (prediction - sigma * x_t) / signal
