"""The mathematics of `flow`.

Shapes: B batch. x_t = α·x0 + σ·ε with α = 1−t, σ = t or cos, sin of πt/2 (Ma et al. 2024, SiT, §3); times
are floats in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from urepa.method.objectives.objective_math import ObjectiveMath, Shape

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
MODE_SCALE = 1.29  # s of Esser et al. (2024)
BELOW_ONE = 1 - 2**-24  # the largest fp32 number below 1
QUANTILES = 1000  # of the distribution of training times


def at_mode(u: float) -> float:
    """Maps a uniform number in [0, 1] to a time with the mode density, which is largest in the middle (Esser et al.
    2024, eq. 20): 1 − u − s·(cos²(πu/2) − 1 + u). It falls from 1 to 0."""
    return 1 - u - MODE_SCALE * (math.cos(math.pi * u / 2) ** 2 - 1 + u)


class FlowMath(ObjectiveMath):
    """The velocity of a path from data (t = 0) to noise (t = 1): v = α̇·x0 + σ̇·ε, which is ε − x0 on the linear one.

    Args:
        path: a key of PATHS.
        draw: how t is drawn: "uniform", or "lognormal", where σ/α = e^N with N standard normal. On the linear path
            that is logit-normal (REPA, arXiv 2410.06940, trains on the uniform one). "mode" is `at_mode` of a uniform
            number.
    """

    samplers: tuple[str, ...] = ("euler", "heun", "sde")
    times = "times from 0 to 1"

    def __init__(self, path: str, draw: str) -> None:
        self.path, at_ratio = PATHS[path]
        draws: dict[str, Callable[[np.random.Generator], float]] = {
            "uniform": lambda rng: rng.random(),
            "lognormal": lambda rng: at_ratio(math.exp(rng.standard_normal())),
            "mode": lambda rng: at_mode(rng.random()),
        }
        self.draw = draws[draw]
        shares = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
        normal = torch.special.ndtri(shares)
        quantiles = {
            "uniform": shares.tolist(),
            "lognormal": [at_ratio(math.exp(n)) for n in normal.tolist()],
            "mode": [at_mode(u) for u in shares.tolist()],
        }
        self._train_at(torch.tensor(quantiles[draw]))

    def sample_t(self, rng: np.random.Generator) -> float:
        return self.draw(rng)

    def sampling_times(self, steps: int, shape: Shape, device: torch.device) -> Tensor:
        """`steps` + 1 times from 1 to 0, float64, at which samples of a shape [C,H,W] are made: evenly spaced."""
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=device)

    def times_of(self, t: float | Tensor) -> Tensor:
        """Given times as fp32: whole numbers, 0 and 1, are times too."""
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
        """The ε that a velocity implies."""
        signal, sigma, d_signal, d_sigma = self.path(t_B.view(-1, 1, 1, 1))
        return (signal * prediction - d_signal * x_t) / (signal * d_sigma - d_signal * sigma)

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return prediction

    def score(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        """∇ log p_t(x_t) = −ε/σ, for t > 0; on the linear path (−(1−t)·v − x_t)/t."""
        _, sigma = self.signal_and_noise(t_B)
        return -self.to_noise(x_t, prediction, t_B) / sigma
