"""Vectors of unit length, as F.normalize makes them, with a cheaper gradient.

Values and gradients are bit for bit those of F.normalize(x, dim=-1). Its backward pass makes nine passes over memory of
x's size, four of them divisions; this one makes five, because x / |x| is what the forward pass returned.

Shapes: XD vectors of width D, X1 a number for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 1e-12  # shorter vectors are divided by this length, and it has no gradient: F.normalize's eps


class _Divided(torch.autograd.Function):
    """`unit_XD` with the gradient of x / max(|x|, SMALLEST). x is given twice and gets two gradients, that of the
    numerator and that of the length: autograd adds them to x's other gradients one by one, in F.normalize's order."""

    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, again_XD: Tensor, unit_XD: Tensor, length_X1: Tensor) -> Tensor:
        ctx.save_for_backward(unit_XD, length_X1)
        return unit_XD.view_as(unit_XD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_XD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        unit_XD, length_X1 = ctx.saved_tensors
        divisor_X1 = length_X1.clamp_min(SMALLEST)
        # in the gradient's layout, in which F.normalize's backward pass adds up too: sums round by layout
        product_XD = torch.div(unit_XD, divisor_X1, out=torch.empty_like(gradient_XD)).mul_(gradient_XD)
        of_length_X1 = product_XD.sum(-1, keepdim=True).neg_()
        of_length_X1 = torch.where(length_X1 >= SMALLEST, of_length_X1, 0.0)
        return gradient_XD / divisor_X1, of_length_X1 * unit_XD, None, None


class UnitVectors:
    """The unit vectors of one tensor for several terms of a loss, computed once. Each `get` is a node of its own in the
    graph, so gradients have the bits that they have where each term calls F.normalize."""

    def __init__(self, x_XD: Tensor) -> None:
        self._x_XD = x_XD
        with torch.no_grad():
            self._length_X1 = torch.linalg.vector_norm(x_XD, 2, dim=-1, keepdim=True)
            self._unit_XD = x_XD / self._length_X1.clamp_min(SMALLEST)

    def get(self, detached: bool = False) -> Tensor:
        """The unit vectors, of x's shape; `detached`: without a gradient."""
        if detached or not (torch.is_grad_enabled() and self._x_XD.requires_grad):
            return self._unit_XD
        unit_XD: Tensor = _Divided.apply(self._x_XD, self._x_XD, self._unit_XD, self._length_X1)
        return unit_XD


def unit_vectors(x_XD: Tensor) -> Tensor:
    """F.normalize(x_XD, dim=-1)."""
    return UnitVectors(x_XD).get()
