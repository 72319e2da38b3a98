"""How x0 is noised and what the backbone must predict.

Shapes: B batch, CHW latent. Timesteps are int64 in [0, T-1]; noise and timesteps are always arguments.
x_t = √ᾱ_t·x0 + √(1−ᾱ_t)·ε                                       (Ho et al. 2020, eq. 4; spec 000 §4.2)
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor


class DDPM(ABC):
    """The variance-preserving corruption, shared by the ε- and the v-target.

    Args:
        beta_start, beta_end: end points of β, in (0,1).
        beta_schedule: "linear" in β (spec 000 §4.2) or "scaled_linear", linear in √β (SD-1.5's own).
        timesteps: T.
    """

    prediction_type: str

    def __init__(self, beta_start: float, beta_end: float, beta_schedule: str, timesteps: int) -> None:
        self.beta_start, self.beta_end = beta_start, beta_end
        self.beta_schedule, self.timesteps = beta_schedule, timesteps
        power = {"linear": 1.0, "scaled_linear": 2.0}[beta_schedule]
        ends = beta_start ** (1 / power), beta_end ** (1 / power)
        betas = torch.linspace(*ends, timesteps, dtype=torch.float32) ** power
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)

    def sample_t(self, rng: np.random.Generator) -> int:
        """One timestep, uniform over 0..T-1."""
        return int(rng.integers(self.timesteps))

    def time_fraction(self, t_B: Tensor) -> Tensor:
        """Timesteps as numbers in [0,1), for binning."""
        return t_B.double() / self.timesteps

    def signal_and_noise(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1−ᾱ_t) as [B,1,1,1]."""
        alpha_bar_B = self.alphas_cumprod.to(t_B.device)[t_B].view(-1, 1, 1, 1)
        return alpha_bar_B**0.5, (1.0 - alpha_bar_B) ** 0.5

    def corrupt(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """x_t."""
        signal, sigma = self.signal_and_noise(t_B)
        return signal * x0 + sigma * noise

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """What the backbone must predict."""

    @abstractmethod
    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        """The x0 that a prediction implies."""

    @abstractmethod
    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        """The v that a prediction implies: √ᾱ·ε − √(1−ᾱ)·x0."""


class DDPMVelocity(DDPM):
    """v = √ᾱ·ε − √(1−ᾱ)·x0 (Salimans & Ho 2022, §4; spec 000 §4.2)."""

    prediction_type = "v_prediction"

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return signal * noise - sigma * x0

    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return signal * x_t - sigma * prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return prediction


class DDPMEpsilon(DDPM):
    """ε itself (Ho et al. 2020, eq. 14): what SD-1.5 was trained to predict."""

    prediction_type = "epsilon"

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        return noise

    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return (x_t - sigma * prediction) / signal

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return (prediction - sigma * x_t) / signal
