"""The mathematics of `flow_shifted`, `flow_by_size` and `flow_by_steps`: the straight path at shifted times.

Shapes: B batch. t = s·u/(1 + (s − 1)·u) (Esser et al. 2024, arXiv 2403.03206, eq. 23), which is e^μ/(e^μ + 1/u − 1)
with s = e^μ.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from urepa.method.objectives.flow_math import QUANTILES, FlowMath
from urepa.method.objectives.objective_math import Shape

FIRST = 1 / 1000  # the time of the first timestep of diffusers' scheduler, before the shift


def shifted(u: Tensor, shift: float) -> Tensor:
    """The shifted time t for u in [0,1]."""
    return shift * u / (1 + (shift - 1) * u)


class _Shifted(FlowMath):
    """A flow whose u is drawn uniformly or as the sigmoid of a normal variable. The shift may depend on the latent's
    shape."""

    samplers = ("euler", "heun")

    def __init__(self, draw: str, mean: float, std: float) -> None:
        super().__init__("linear", "uniform")
        draws: dict[str, Callable[[np.random.Generator], float]] = {
            "uniform": lambda rng: rng.random(),
            "logit_normal": lambda rng: 1 / (1 + math.exp(-(mean + std * rng.standard_normal()))),
        }
        self.draw = draws[draw]
        shares = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
        self._quantiles = shares if draw == "uniform" else torch.sigmoid(mean + std * torch.special.ndtri(shares))

    @abstractmethod
    def shift_at(self, shape: Shape) -> float:
        """The shift s for latents [C,H,W]."""

    def at_size(self, t: float, shape: Shape) -> float:
        return float(shifted(torch.tensor(t, dtype=torch.float64), self.shift_at(shape)))

    def usual_shares(self, shape: Shape) -> Tensor:
        return self._share_of_data(shifted(self._quantiles, self.shift_at(shape)))

    def sampling_times(self, steps: int, shape: Shape, device: torch.device) -> Tensor:
        return shifted(super().sampling_times(steps, shape, device), self.shift_at(shape))


class ShiftedFlowMath(_Shifted):
    """The same shift for all sizes.

    Args:
        draw: "uniform" or "logit_normal", with the mean and the standard deviation of the normal variable.
        grid: the times of sampling: "even", or "scheduler", those of diffusers' FlowMatchEulerDiscreteScheduler.
    """

    def __init__(self, draw: str, mean: float, std: float, shift: float, grid: str) -> None:
        super().__init__(draw, mean, std)
        self.shift, self.grid = shift, grid

    def shift_at(self, shape: Shape) -> float:
        return self.shift

    def sampling_times(self, steps: int, shape: Shape, device: torch.device) -> Tensor:
        if self.grid == "even":
            return super().sampling_times(steps, shape, device)
        last = float(shifted(torch.tensor(FIRST, dtype=torch.float64), self.shift))
        noisy = torch.linspace(1, last, steps, dtype=torch.float64, device=device)
        return torch.cat([shifted(noisy, self.shift), noisy.new_zeros(1)])


class SizeShiftedFlowMath(_Shifted):
    """s = e^μ, where μ is linear in the number of image tokens: `base_shift` at `base_tokens`, `max_shift` at
    `max_tokens`.

    Args:
        token_side: the side of an image token, in latent pixels.
    """

    def __init__(
        self,
        draw: str,
        mean: float,
        std: float,
        base_shift: float,
        max_shift: float,
        base_tokens: int,
        max_tokens: int,
        token_side: int,
    ) -> None:
        super().__init__(draw, mean, std)
        self.slope = (max_shift - base_shift) / (max_tokens - base_tokens)
        self.offset = base_shift - self.slope * base_tokens
        self.token_side = token_side

    def shift_at(self, shape: Shape) -> float:
        _, height, width = shape
        return math.exp(self.offset + self.slope * (height // self.token_side) * (width // self.token_side))


class StepShiftedFlowMath(_Shifted):
    """s = e^μ, where μ is linear in the number of image tokens. In training μ is on the line `many`. In sampling μ is
    interpolated between the lines `few` and `many`, linearly in the number of steps.

    Args:
        few, many: the slope, the offset and the number of steps of each line.
        most_tokens: with more image tokens than this, μ is on the line `many` at any number of steps.
        token_side: the side of an image token, in latent pixels.
    """

    def __init__(
        self,
        draw: str,
        mean: float,
        std: float,
        few: tuple[float, float, int],
        many: tuple[float, float, int],
        most_tokens: int,
        token_side: int,
    ) -> None:
        super().__init__(draw, mean, std)
        self.few, self.many = few, many
        self.most_tokens, self.token_side = most_tokens, token_side

    def shift_at(self, shape: Shape) -> float:
        slope, offset, _ = self.many
        return math.exp(slope * self._tokens(shape) + offset)

    def sampling_times(self, steps: int, shape: Shape, device: torch.device) -> Tensor:
        return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=device), self._at(steps, shape))

    def _at(self, steps: int, shape: Shape) -> float:
        """The shift s for sampling in this number of steps."""
        tokens = self._tokens(shape)
        if tokens > self.most_tokens:
            return self.shift_at(shape)
        at_few, at_many = (slope * tokens + offset for slope, offset, _ in (self.few, self.many))
        share = (steps - self.few[2]) / (self.many[2] - self.few[2])
        return math.exp(at_few + share * (at_many - at_few))

    def _tokens(self, shape: Shape) -> int:
        _, height, width = shape
        return (height // self.token_side) * (width // self.token_side)
