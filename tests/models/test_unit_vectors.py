"""Unit vectors and their gradients, which are those of F.normalize bit for bit.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.method.losses import loss_math
from urepa.models.unit_vectors import SMALLEST, UnitVectors, unit_vectors

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as a map": lambda x_BND: x_BND.transpose(1, 2).contiguous().transpose(1, 2),
    "contiguous": lambda x_BND: x_BND,
}


def normalised(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradient(x_BND: Tensor, term: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A term's value and its gradient."""
    x_BND = x_BND.detach().requires_grad_()
    value = term(x_BND)
    (gradient,) = torch.autograd.grad(value.sum(), x_BND)
    return value.detach(), gradient


@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_tokens", LAYOUTS)
def test_value_and_gradient_have_the_bits_of_normalize(of_tokens: str, of_gradient: str) -> None:
    x_BND, weight_BND = LAYOUTS[of_tokens](tokens(3, 16, 40)), LAYOUTS[of_gradient](tokens(3, 16, 40, seed=1))
    ours, theirs = (with_gradient(x_BND, lambda x, f=f: f(x) * weight_BND) for f in (unit_vectors, normalised))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[0].stride() == theirs[0].stride()


@pytest.mark.parametrize("length", [0.0, 1e-20, 0.99 * SMALLEST, SMALLEST, 1e18, float("inf"), float("nan")])
def test_extreme_lengths_give_what_normalize_gives(length: float) -> None:
    x_BND, weight_BND = length * F.normalize(tokens(1, 2, 6), dim=-1), tokens(1, 2, 6, seed=1)
    ours, theirs = (with_gradient(x_BND, lambda x, f=f: f(x) * weight_BND) for f in (unit_vectors, normalised))
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own.isnan(), other.isnan())
        assert torch.equal(own.nan_to_num(), other.nan_to_num())


def test_the_gradient_is_that_of_differences() -> None:
    x = tokens(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(unit_vectors, x)


def separately(x_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """Three terms, each of which normalises by itself."""
    token_B = 1.0 - (normalised(x_BND) * normalised(teacher_BND)).sum(-1).mean(1)
    pooled = [normalised(normalised(side).mean(1)) for side in (x_BND, teacher_BND)]
    units = [normalised(side) for side in (x_BND, teacher_BND)]
    within = loss_math.mean_square(units[0] @ units[0].mT - units[1] @ units[1].mT)
    return token_B.mean() + 3 * loss_math.manifold_loss_sample(*pooled) + within


def together(x_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """The same of units that are computed once."""
    student, teacher = loss_math.UnitTokens(x_BND), loss_math.UnitTokens(teacher_BND)
    token_B = loss_math.token_loss_of_units(student.get(), teacher.get())
    pooled = [loss_math.pool_units(side.get()) for side in (student, teacher)]
    within = loss_math.manifold_loss_of_units(student.get(), teacher.get())
    return token_B.mean() + 3 * loss_math.manifold_loss_sample(*pooled) + within


@pytest.mark.parametrize("layout", LAYOUTS)
def test_terms_that_share_unit_vectors_have_the_bits_of_terms_that_do_not(layout: str) -> None:
    x_BND, teacher_BND = LAYOUTS[layout](tokens(5, 16, 48)), tokens(5, 16, 48, seed=1)
    ours, theirs = (with_gradient(x_BND, lambda x, f=f: f(x, teacher_BND)) for f in (together, separately))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_detached_and_constant_vectors_have_no_graph() -> None:
    trained, constant = UnitVectors(tokens(2, 3, 4).requires_grad_()), UnitVectors(tokens(2, 3, 4))
    assert trained.get().requires_grad
    assert not trained.get(detached=True).requires_grad
    assert not constant.get().requires_grad
    with torch.no_grad():
        assert not trained.get().requires_grad


def test_masked_tokens_are_zero_and_have_no_gradient() -> None:
    mask_BN = torch.tensor([[True, False, True]])
    x_BND = torch.cat([tokens(1, 1, 4), torch.full((1, 1, 4), torch.nan), tokens(1, 1, 4, seed=1)], 1).requires_grad_()
    unit_BND = loss_math.UnitTokens(x_BND, mask_BN).get()
    assert (unit_BND[0, 1] == 0).all()
    (gradient,) = torch.autograd.grad((unit_BND * tokens(1, 3, 4, seed=2)).sum(), x_BND)
    assert (gradient[0, 1] == 0).all()
    assert gradient[0, 0].abs().sum() > 0
