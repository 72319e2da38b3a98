"""The memory layout of a head's gradient at a tap.

Where gradients of several paths meet, autograd adds them up in the layout of the one that comes first, which is the
head's, and kernels further back round differently by layout. So a head whose gradient has another layout than the
backbone's own, as that of a convolution over tokens, would change the last bits of the backbone's gradients, even with
a gradient of 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _InLayout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strides: tuple[int, ...]) -> Tensor:
        ctx.strides = strides
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if gradient.stride() == ctx.strides:
            return gradient, None
        laid_out = torch.empty_strided(gradient.shape, ctx.strides, dtype=gradient.dtype, device=gradient.device)
        return laid_out.copy_(gradient), None


def with_gradient_in_own_layout(x_BND: Tensor) -> Tensor:
    """`x_BND`; the gradient that comes back to it has the layout of the backbone's own: tokens that are a view of a map
    have the map's, and others are contiguous, whatever their own layout is, as layer norms return them."""
    strides = x_BND.stride() if x_BND._is_view() else torch.empty(x_BND.shape, device="meta").stride()
    return _InLayout.apply(x_BND, strides)
