"""How x0 is noised and what the backbone must predict.

Shapes: B batch, CHW latent. Noise and times are always arguments. DDPM's timesteps are int64 in [0, T-1], flow's times
floats in [0, 1]. x_t = α·x0 + σ·ε in both, with
α = √ᾱ_t, σ = √(1−ᾱ_t)             for DDPM                               (Ho et al. 2020, eq. 4; spec 000 §4.2)
α = 1−t, σ = t or cos, sin of πt/2  for flow                               (Ma et al. 2024, SiT, §3; SYSTEMS.md D)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class Objective(ABC):
    """What every objective owns. `samplers` are those that solve its equation, by their names in
    `urepa.method.ddpm_sampling`, the usual one first, in at most `most_steps`; `times` says in words which times there
    are."""

    samplers: tuple[str, ...]
    most_steps: float = math.inf
    times: str

    @abstractmethod
    def sample_t(self, rng: np.random.Generator) -> float:
        """One time to train at."""

    def times_of(self, t: float | Tensor) -> Tensor:
        """Given times as this objective computes with them, whether it has them or not."""
        return torch.as_tensor(t)

    @abstractmethod
    def has_time(self, t_B: Tensor) -> bool:
        """Are these times of this objective?"""

    @abstractmethod
    def time_at(self, fraction: float) -> float:
        """The time at a fraction in [0,1) of the way from data to noise."""

    @abstractmethod
    def time_fraction(self, t_B: Tensor) -> Tensor:
        """Times as numbers in [0,1), for binning."""

    @abstractmethod
    def signal_and_noise(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ as [B,1,1,1]."""

    def towards_data(self, t_B: Tensor, power: float) -> Tensor:
        """A weight of samples by their times [B]: (1 − s)^power over its mean over the times that are trained at.

        s = σ/(α + σ), in [0,1], is the share of noise in x_t, which is flow's own t on the linear path. 0 weighs all
        samples alike; with a `power` of 1 and uniform t there, the weight falls from 2 at the data to 0 at the noise.
        """
        return self._share_of_data(t_B) ** power / (self._usual_shares**power).mean()

    def _train_at(self, times: Tensor) -> None:
        """For constructors: times that stand for those that are trained at, each as likely as any other."""
        self._usual_shares = self._share_of_data(times)

    def _share_of_data(self, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return (signal / (signal + sigma)).view(-1)

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
        """The v that a prediction implies: √ᾱ·ε − √(1−ᾱ)·x0 under DDPM, dx_t/dt under flow."""


class DDPM(Objective):
    """The variance-preserving corruption, shared by the ε- and the v-target.

    Args:
        beta_start, beta_end: end points of β, in (0,1).
        beta_schedule: "linear" in β (spec 000 §4.2) or "scaled_linear", linear in √β (SD-1.5's own).
        timesteps: T.
    """

    prediction_type: str
    samplers = ("ddim", "dpmsolver", "euler")

    def __init__(self, beta_start: float, beta_end: float, beta_schedule: str, timesteps: int) -> None:
        self.beta_start, self.beta_end = beta_start, beta_end
        self.beta_schedule, self.timesteps = beta_schedule, timesteps
        power = {"linear": 1.0, "scaled_linear": 2.0}[beta_schedule]
        ends = beta_start ** (1 / power), beta_end ** (1 / power)
        betas = torch.linspace(*ends, timesteps, dtype=torch.float32) ** power
        self.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self.most_steps = timesteps
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

    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return self.implied_x0(x_t, prediction, *self.signal_and_noise(t_B))

    @abstractmethod
    def implied_x0(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The x0 that a prediction implies at α and σ, [B,1,1,1] or scalars."""

    @abstractmethod
    def implied_noise(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The ε that a prediction implies at α and σ, [B,1,1,1] or scalars."""


class DDPMVelocity(DDPM):
    """v = √ᾱ·ε − √(1−ᾱ)·x0 (Salimans & Ho 2022, §4; spec 000 §4.2)."""

    prediction_type = "v_prediction"

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return signal * noise - sigma * x0

    def implied_x0(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return signal * x_t - sigma * prediction

    def implied_noise(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return signal * prediction + sigma * x_t

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return prediction


class DDPMEpsilon(DDPM):
    """ε itself (Ho et al. 2020, eq. 14): what SD-1.5 was trained to predict."""

    prediction_type = "epsilon"

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        return noise

    def implied_x0(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * prediction) / signal

    def implied_noise(self, x_t: Tensor, prediction: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(t_B)
        return (prediction - sigma * x_t) / signal


NoisePath = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def linear_path(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """α, σ, α̇, σ̇ of the straight line."""
    one = torch.ones_like(t)
    return 1 - t, t, -one, one


def cosine_path(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """α, σ, α̇, σ̇ of the quarter circle."""
    quarter = math.pi / 2
    signal, sigma = torch.cos(quarter * t), torch.sin(quarter * t)
    return signal, sigma, -quarter * sigma, quarter * signal


# By name: the path, and the time at which its noise-to-signal ratio σ/α is r
PATHS: dict[str, tuple[NoisePath, Callable[[float], float]]] = {
    "linear": (linear_path, lambda r: r / (1 + r)),
    "cosine": (cosine_path, lambda r: math.atan(r) * 2 / math.pi),
}
BELOW_ONE = 1 - 2**-24  # the last fp32 number
QUANTILES = 1000  # that stand for the times that are drawn


class Flow(Objective):
    """The velocity of a path from data (t = 0) to noise (t = 1): v = α̇·x0 + σ̇·ε, which is ε − x0 on the linear one.

    Args:
        path: a key of PATHS.
        draw: how t is drawn: "uniform", or "lognormal", where σ/α = e^N with N standard normal. On the linear path
            that is logit-normal (SYSTEMS.md D; REPA, arXiv 2410.06940, trains on the uniform one).
    """

    samplers = ("euler", "heun", "sde")
    times = "times from 0 to 1"

    def __init__(self, path: str, draw: str) -> None:
        self.path, at_ratio = PATHS[path]
        draws: dict[str, Callable[[np.random.Generator], float]] = {
            "uniform": lambda rng: rng.random(),
            "lognormal": lambda rng: at_ratio(math.exp(rng.standard_normal())),
        }
        self.draw = draws[draw]
        shares = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
        normal = torch.special.ndtri(shares)
        quantiles = {"uniform": shares.tolist(), "lognormal": [at_ratio(math.exp(n)) for n in normal.tolist()]}
        self._train_at(torch.tensor(quantiles[draw]))

    def sample_t(self, rng: np.random.Generator) -> float:
        return self.draw(rng)

    def times_of(self, t: float | Tensor) -> Tensor:
        """0 and 1 are times too, also where they are written as whole numbers."""
        return torch.as_tensor(t).float()

    def has_time(self, t_B: Tensor) -> bool:
        return t_B.is_floating_point() and bool((t_B >= 0).all() and (t_B <= 1).all())

    def time_at(self, fraction: float) -> float:
        return fraction

    def time_fraction(self, t_B: Tensor) -> Tensor:
        return t_B.double().clamp(max=BELOW_ONE)

    def signal_and_noise(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.path(t_B.view(-1, 1, 1, 1))[:2]

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        _, _, d_signal, d_sigma = self.path(t_B.view(-1, 1, 1, 1))
        return d_signal * x0 + d_sigma * noise

    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        signal, sigma, d_signal, d_sigma = self.path(t_B.view(-1, 1, 1, 1))
        return (d_sigma * x_t - sigma * prediction) / (signal * d_sigma - d_signal * sigma)

    def to_noise(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        """The ε that a prediction implies."""
        signal, sigma, d_signal, d_sigma = self.path(t_B.view(-1, 1, 1, 1))
        return (signal * prediction - d_signal * x_t) / (signal * d_sigma - d_signal * sigma)

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return prediction

    def score(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        """∇ log p_t(x_t) = −ε/σ, for t > 0; on the linear path (−(1−t)·v − x_t)/t."""
        _, sigma = self.signal_and_noise(t_B)
        return -self.to_noise(x_t, prediction, t_B) / sigma
