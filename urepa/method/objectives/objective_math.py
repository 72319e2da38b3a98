"""The base class of the objectives' mathematics: how x0 is noised and what the backbone must predict.

Shapes: B batch, CHW latent. Noise and times are always arguments. DDPM's timesteps are int64 in [0, T-1], flow's times
floats in [0, 1]. x_t = α·x0 + σ·ε in both, with
α = √ᾱ_t, σ = √(1−ᾱ_t)             for DDPM                               (Ho et al. 2020, eq. 4)
α = 1−t, σ = t or cos, sin of πt/2  for flow                               (Ma et al. 2024, SiT, §3)
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from urepa.core.abstract import Abstract
from urepa.method.losses.loss_math import diffusion_loss

Shape = tuple[int, int, int]  # C, H, W


def shape_of(x: Tensor) -> Shape:
    """C, H, W of a batch [B,C,H,W]."""
    _, channels, height, width = x.shape
    return channels, height, width


class ObjectiveMath(Abstract):
    """The mathematics of an objective. `samplers`: the names of the samplers that solve its equation
    (`urepa.method.ddpm_sampling`), the default first; `most_steps`: the most sampling steps that they can take;
    `times`: the valid times in words, for messages."""

    samplers: tuple[str, ...]
    most_steps: float = math.inf
    times: str

    @abstractmethod
    def sample_t(self, rng: np.random.Generator) -> float:
        """One time to train at."""

    def at_size(self, t: float, shape: Shape) -> float:
        """The time that a sample of this shape [C,H,W] is trained at, of one that `sample_t` gave."""
        return t

    def times_of(self, t: float | Tensor) -> Tensor:
        """Given times in the dtype of this objective, whether they are valid or not."""
        return torch.as_tensor(t)

    @abstractmethod
    def has_time(self, t_B: Tensor) -> bool:
        """Whether all of these are times of this objective."""

    @abstractmethod
    def time_at(self, fraction: float) -> float:
        """The time at a fraction in [0,1) of the way from data to noise."""

    @abstractmethod
    def time_fraction(self, t_B: Tensor) -> Tensor:
        """Times as numbers in [0,1), for binning."""

    @abstractmethod
    def signal_and_noise(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ as [B,1,1,1]."""

    def towards_data(self, t_B: Tensor, power: float, shape: Shape) -> Tensor:
        """Weights of samples of a shape [C,H,W] by their times [B]: (1 − s)^power, divided by its mean over the times
        at which samples of this shape are trained.

        s = σ/(α + σ), in [0,1], is the share of noise in x_t; on a flow's linear path it is t. A `power` of 0 gives all
        samples the same weight. With a `power` of 1, the linear path and uniform t, the weight falls from 2 at the data
        to 0 at the noise.
        """
        return self._share_of_data(t_B) ** power / (self.usual_shares(shape) ** power).mean()

    def _train_at(self, times: Tensor) -> None:
        """For constructors: sets equally likely times that represent the distribution of training times."""
        self._usual_shares = self._share_of_data(times)

    def usual_shares(self, shape: Shape) -> Tensor:
        """1 − s at times that stand for those that samples of a shape are trained at."""
        return self._usual_shares

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

    def loss_weight(self, t_B: Tensor) -> Tensor | None:
        """The weight of the diffusion term of samples at these times [B]; None: the same for all."""
        return None

    def diffusion_terms(
        self, prediction_RCHW: Tensor, target: Tensor, t_B: Tensor, rows_R: Tensor | None = None
    ) -> Tensor:
        """The diffusion term of each row [R]: the mean squared error, times its weight.

        Args:
            target, t_B: of the whole micro-batch.
            rows_R: the rows that were predicted; None: all.
        """
        weight_B = self.loss_weight(t_B)
        if rows_R is not None:
            target, weight_B = target[rows_R], None if weight_B is None else weight_B[rows_R]
        error_R = diffusion_loss(prediction_RCHW, target)
        return error_R if weight_B is None else weight_B * error_R

    @abstractmethod
    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        """The x0 that a prediction implies."""

    @abstractmethod
    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        """The v that a prediction implies: √ᾱ·ε − √(1−ᾱ)·x0 under DDPM, dx_t/dt under flow."""
