"""Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416). The difference of the two predictions is summed
over the steps with a momentum, its norm is bounded, and its component parallel to the conditional prediction, which
oversaturates images, is reduced.

Shapes: B images, CHW latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """How the difference d = c − u of the conditional and unconditional predictions is changed.

    Args:
        eta: the share that is kept of the component of d parallel to c; 1: all of it.
        threshold: the largest norm of d, over all values of an image; infinity: no bound.
        momentum: the factor of the running sum that is added to d; 0: none; negative: earlier steps are subtracted.
    """

    eta: float
    threshold: float
    momentum: float


class ProjectedGuidance:
    """c + (s − 1)·d' with the changed difference d'. It holds the running sum of one run of a sampler, so each run
    needs a new one. With eta 1, no threshold and no momentum it is classifier-free guidance, u + s·(c − u)."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.running: Tensor | None = None

    def __call__(self, u: Tensor, c: Tensor, scale: float) -> Tensor:
        """The guided prediction [B,C,H,W] of one evaluation of the backbone."""
        d = c - u if self.running is None else c - u + self.projection.momentum * self.running
        self.running = d
        length = torch.linalg.vector_norm(d, dim=(1, 2, 3), keepdim=True)
        d = d * (self.projection.threshold / length.clamp(min=torch.finfo(d.dtype).tiny)).clamp(max=1)
        along = (d * c).sum((1, 2, 3), keepdim=True) / (c * c).sum((1, 2, 3), keepdim=True)
        parallel = torch.where(along.isfinite(), along, 0) * c
        return c + (scale - 1) * (d - parallel + self.projection.eta * parallel)
