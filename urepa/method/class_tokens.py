"""The class token that is denoised with the image: what it is, and its place in a training step and in sampling.

Shapes: B batch, E values of the class token, CHW latent, K channels that hold the class token.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.class_token_protocols import class_values
from urepa.core.conditions import Condition
from urepa.core.teacher_names import ALONE
from urepa.core.types import Batch, Denoised, Tokens
from urepa.method.losses.loss_math import pool_tokens


class NoisedClass(NamedTuple):
    """A noised class token [B,E,1,1], and what is to be predicted of it."""

    x_t_BE11: Tensor
    target_BE11: Tensor


def class_token(tokens: Tokens) -> Tensor:
    """The class token [B,E,1,1] of a teacher's tokens: their pooled vector with mean 0 and variance 1 over its E
    values, as the LayerNorm at a ViT's end leaves its own. fp32."""
    pooled_BE = pool_tokens(tokens.x_BND, tokens.mask_BN)
    return F.layer_norm(pooled_BE, pooled_BE.shape[1:], eps=1e-8)[..., None, None]


def noised_class(loss: Any, objective: Any, batch: Batch) -> NoisedClass | None:
    """The class token of a batch at the times of its images, with its own noise; None: the loss has none."""
    if not getattr(loss, "has_class_token", False):
        return None
    class_0, noise = class_token(batch.teachers[ALONE]), batch.class_noise_BE11
    assert noise is not None, "the reader draws it for a backbone with a class token"
    assert class_0.shape == noise.shape, f"a teacher of width {class_0.shape[1]}, a class token of {noise.shape[1]}"
    return NoisedClass(
        objective.corrupt(class_0, noise, batch.t_B),
        objective.target(class_0, noise, batch.t_B),
    )


def zero_class(backbone: Any, count: int, device: torch.device) -> dict[str, Tensor]:
    """The further argument of a forward pass that is made for its shapes alone."""
    values = class_values(backbone)
    return {"class_BE11": torch.zeros(count, values, 1, 1, device=device)} if values else {}


class PackedState:
    """A backbone with a class token, as samplers call one: their state [B,C+K,H,W] has the class token in K further
    channels of the latent, whose last values fill these up and mean nothing. What is predicted of them is 0.

    Args:
        backbone: a `urepa.core.class_token_protocols.ClassTokenNetwork`.
        shape: C, H, W.
    """

    def __init__(self, backbone: Any, shape: tuple[int, int, int]) -> None:
        self.backbone, self.values = backbone, class_values(backbone)
        self.channels, self.height, self.width = shape
        self.more = math.ceil(self.values / (self.height * self.width))  # K

    def join(self, x_BCHW: Tensor, class_BE11: Tensor) -> Tensor:
        """The state [B,C+K,H,W] of both parts."""
        filled = F.pad(class_BE11.flatten(1), (0, self.more * self.height * self.width - self.values))
        return torch.cat([x_BCHW, filled.view(-1, self.more, self.height, self.width).to(x_BCHW.dtype)], dim=1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The image's part [B,C,H,W] and the class token [B,E,1,1] of a state."""
        x_BCHW, filled = state.split([self.channels, self.more], dim=1)
        return x_BCHW, filled.flatten(1)[:, : self.values, None, None]

    def __call__(self, state: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        x_t, class_BE11 = self.split(state)
        denoised = self.backbone(x_t, t_B, condition, class_BE11=class_BE11)
        return Denoised(self.join(denoised.prediction_RCHW, denoised.class_RE11))
