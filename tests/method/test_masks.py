"""Masked tokens: every term equals the one of the other tokens alone, and masked tokens have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import of_ids
from torch import Tensor

from urepa.core.types import Batch, Tokens
from urepa.evaluation.constant_tokens import ConstantToken
from urepa.evaluation.validation_loss import Validation
from urepa.method.heads.conv_net import ConvHead
from urepa.method.heads.mlp_net import MLPHead
from urepa.method.heads.spatial_net import SpatialHead
from urepa.method.losses import loss_math
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import Aligned

STUDENT = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
TEACHER = torch.tensor([[1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
BOTH = STUDENT & TEACHER
GRID = (2, 3)
T = torch.tensor([0.1, 0.5, 0.9])


def made_up(seed: int) -> Tensor:
    """Values [3,6,5], with values at masked places that would be noticed."""
    tokens_BND = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(seed))
    return tokens_BND.masked_fill(~BOTH[..., None], torch.inf if seed else -1e30)


def counted_tokens(tokens_BND: Tensor) -> list[Tensor]:
    """The tokens that count of each sample, in fp64."""
    return [x_ND[mask_N].double() for x_ND, mask_N in zip(tokens_BND, BOTH, strict=True)]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def token_by_hand(student: Tensor, teacher: Tensor) -> Tensor:
    pairs = zip(counted_tokens(student), counted_tokens(teacher), strict=True)
    return torch.stack([1 - (unit(s) * unit(t)).sum(-1).mean() for s, t in pairs])


def sample_by_hand(student: Tensor, teacher: Tensor) -> Tensor:
    s_BD, t_BD = (torch.stack([unit(unit(x).mean(0)) for x in counted_tokens(side)]) for side in (student, teacher))
    difference = s_BD @ s_BD.T - t_BD @ t_BD.T
    return torch.stack([difference[i, j] ** 2 for i in range(3) for j in range(3) if i != j]).mean()


def within_by_hand(student: Tensor, teacher: Tensor) -> Tensor:
    means = []
    for s, t in zip(counted_tokens(student), counted_tokens(teacher), strict=True):
        difference = unit(s) @ unit(s).T - unit(t) @ unit(t).T
        squares = [difference[i, j] ** 2 for i in range(len(s)) for j in range(len(s)) if i != j]
        means.append(torch.stack(squares).mean())
    return torch.stack(means).mean()


def sample_level(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return loss_math.manifold_loss_sample(*(loss_math.pool_tokens(x, mask) for x in (student, teacher)))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (loss_math.token_loss, token_by_hand),
        (sample_level, sample_by_hand),
        (loss_math.manifold_loss_token, within_by_hand),
    ],
)
def test_a_term_is_that_of_the_tokens_that_count(term: Callable[..., Tensor], expected: Callable[..., Tensor]) -> None:
    student, teacher = made_up(0).requires_grad_(), made_up(1)
    found = term(student, teacher, BOTH)
    torch.testing.assert_close(found.double(), expected(student.detach(), teacher), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert torch.equal(gradient[~BOTH], torch.zeros_like(gradient[~BOTH]))
    assert (gradient[BOTH].abs().sum(-1) > 0).all()


def test_spatial_norm_is_that_of_the_tokens_that_count() -> None:
    tokens = made_up(1).requires_grad_()
    found = loss_math.normalise_spatially(tokens, 0.6, BOTH)
    for own, x, mask in zip(found, counted_tokens(tokens), BOTH, strict=True):
        expected = (x - 0.6 * x.mean(0)) / (x.std(0) + 1e-6)
        torch.testing.assert_close(own[mask].double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(own[~mask], torch.zeros_like(own[~mask]))
    (gradient,) = torch.autograd.grad(found.pow(3).sum(), tokens)
    assert torch.equal(gradient[~BOTH], torch.zeros_like(gradient[~BOTH]))


@pytest.mark.parametrize("least", [1, 2])
def test_a_sample_without_tokens_that_count_is_an_error(least: int) -> None:
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, least - 1 :] = False
    tokens = torch.randn(3, 6, 5)
    told = f"a sample of the batch has {least - 1} tokens that count; this term needs {least} or more"
    terms: list[Callable[[], Tensor]] = [
        lambda: loss_math.manifold_loss_token(tokens, tokens, mask),
        lambda: loss_math.normalise_spatially(tokens, 1.0, mask),
    ]
    if least == 1:
        terms = [lambda: loss_math.token_loss(tokens, tokens, mask), lambda: loss_math.pool_tokens(tokens, mask)]
    for term in terms:
        with pytest.raises(ValueError, match=told):
            term()


def urepa_loss(**changes: Any) -> Any:
    settings: dict[str, Any] = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 3.0, "spike_threshold": 9.0}
    return URepaLoss(**settings, level="both", taps={"mid": 1.0}, **changes).build(schedule=Constant(), max_steps=9)


@pytest.mark.parametrize("masks", [(STUDENT, TEACHER), (BOTH, None), (None, BOTH)])
def test_a_token_counts_if_neither_mask_excludes_it(masks: tuple[Tensor | None, Tensor | None]) -> None:
    student, teacher, x0 = made_up(0).requires_grad_(), made_up(1), torch.zeros(3, 1, 2, 2)
    batch = Batch([], x0, x0, T, of_ids(torch.zeros(3, dtype=torch.long), 3), {"": Tokens(teacher, GRID, masks[1])})
    output = Aligned(x0, {}, {"mid": Tokens(student, GRID, masks[0])})
    terms = urepa_loss()(torch.rand(3), output, batch, 5, lambda x: x)
    of = student.detach(), teacher
    manifold = (sample_by_hand(*of) + within_by_hand(*of)) / 2
    torch.testing.assert_close(terms.per_sample["token"].double(), token_by_hand(*of), rtol=0, atol=1e-6)
    torch.testing.assert_close(terms.manifold.double(), manifold, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(terms.total, student)
    assert torch.equal(gradient[~BOTH], torch.zeros_like(gradient[~BOTH]))
    assert (gradient[BOTH].abs().sum(-1) > 0).all()


def test_targets_are_normalised_over_the_teachers_own_mask() -> None:
    tokens = Tokens(torch.randn(3, 6, 5), GRID, TEACHER)
    target = urepa_loss(spatial_norm=1.0).targets(tokens)
    assert torch.equal(target.x_BND, loss_math.normalise_spatially(tokens.x_BND, 1.0, TEACHER))
    assert target.mask_BN is TEACHER
    assert (target.grid, urepa_loss().targets(tokens)) == (GRID, tokens)


def test_the_best_constant_is_measured_where_tokens_count() -> None:
    teacher, mean_D, x0 = made_up(1), torch.randn(5), torch.zeros(3, 1, 2, 2)
    batch = Batch([], x0, x0, T, of_ids(torch.zeros(3, dtype=torch.long), 3), {"": Tokens(teacher, GRID, BOTH)})
    settings: Any = {"reader": None, "objective": None, "layout": None, "device": torch.device("cpu")}
    validation = Validation(loss=urepa_loss(), constants={"": [ConstantToken("mid", 1.0, mean_D)]}, **settings)
    output = Aligned(x0, {}, {"mid": Tokens(teacher, GRID)})
    found = validation._constant(batch, output)["constant_token"]
    expected = [
        1 - F.cosine_similarity(x, mean_D.double().expand_as(x), dim=-1).mean() for x in counted_tokens(teacher)
    ]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=0, atol=1e-6)


# --- heads --------------------------------------------------------------------------------------------------


def test_a_head_carries_the_mask_to_an_equal_grid() -> None:
    tapped = Tokens(torch.randn(3, 6, 5), GRID, BOTH)
    for head in (MLPHead(4, in_width=5, out_width=7), ConvHead(2, "after", in_width=5, out_width=7)):
        assert head(tapped, T, GRID).mask_BN is BOTH


@pytest.mark.parametrize("upsample", ["before", "after"])
def test_a_resized_token_counts_if_all_its_sources_count(upsample: str) -> None:
    """One of three columns is masked. Of six resized columns, 0 and 1 depend on the first alone, 4 and 5 on the last
    too."""
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]], dtype=torch.bool)
    head = ConvHead(1, upsample, in_width=5, out_width=7)
    x_BND = torch.randn(1, 6, 5, requires_grad=True)
    tokens = head(Tokens(x_BND, GRID, mask), T[:1], (2, 6))
    assert tokens.mask_BN.view(2, 6).tolist() == [[True, True, True, False, False, False]] * 2
    (gradient,) = torch.autograd.grad(tokens.x_BND[tokens.mask_BN].pow(3).sum(), x_BND)
    assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))
    assert gradient[mask].abs().sum() > 0


def test_a_convolution_treats_masked_tokens_as_padding() -> None:
    head = SpatialHead(3, in_width=5, out_width=7)
    whole = torch.randn(1, 6, 5)
    masked = head(Tokens(whole, GRID, torch.tensor([[1, 1, 0, 1, 1, 0]], dtype=torch.bool)), T[:1], GRID)
    left = head(Tokens(whole.view(1, 2, 3, 5)[:, :, :2].flatten(1, 2), (2, 2)), T[:1], (2, 2))
    torch.testing.assert_close(masked.x_BND.view(2, 3, 7)[:, :2], left.x_BND.view(2, 2, 7))
