"""The sinusoidal embedding of times. Shapes: B batch, S = SINUSOID."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SINUSOID = 256


def sinusoid(t_B: Tensor, longest: float = 10_000) -> Tensor:
    """cos and sin of t times frequencies from 1 down to 1/`longest`: [B,S], in fp32. t is not scaled."""
    half = SINUSOID // 2
    frequencies_F = torch.exp(torch.arange(half, device=t_B.device) * (-math.log(longest) / half))
    angles_BF = t_B.float()[:, None] * frequencies_F
    return torch.cat([angles_BF.cos(), angles_BF.sin()], dim=1)
