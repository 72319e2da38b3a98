"""The loss terms, compared with the description's worked numbers and with slow references."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.method.losses import loss_math
from urepa.method.losses.urepa_loss import MANIFOLD_LEVELS

G_PREDICTED = torch.tensor(
    [[1.00, 0.92, 0.31, 0.08], [0.92, 1.00, 0.28, 0.12], [0.31, 0.28, 1.00, 0.05], [0.08, 0.12, 0.05, 1.00]],
    dtype=torch.float64,
)
DIFFERENCE = torch.tensor(
    [[0.0, -0.05, -0.05, 0.02], [-0.05, 0.0, -0.03, 0.02], [-0.05, -0.03, 0.0, 0.03], [0.02, 0.02, 0.03, 0.0]],
    dtype=torch.float64,
)


def unit_tokens(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def documents_manifold_loss(pred: Tensor, target: Tensor, upper_only: bool = True) -> Tensor:
    """The description's formula line by line, with the diagonal masked."""
    pred_norm = F.normalize(pred.mean(dim=1), dim=-1)
    target_norm = F.normalize(target.mean(dim=1), dim=-1)
    diff = pred_norm @ pred_norm.T - target_norm @ target_norm.T
    diff = diff - torch.diag_embed(torch.diagonal(diff))
    if upper_only:
        mask = torch.triu(torch.ones_like(diff), diagonal=1)
        return ((diff * mask) ** 2).sum() / mask.sum()
    return (diff**2).mean()


def documents_token_loss(pred: Tensor, target: Tensor) -> Tensor:
    """The description's formula: 1 - cos, token by token."""
    return (1.0 - (F.normalize(pred, dim=-1) * F.normalize(target, dim=-1)).sum(-1)).mean()


# --- token loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cosine", "loss"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 2.0)])
def test_token_loss_of_the_documents_three_angles(cosine: float, loss: float) -> None:
    teacher = torch.tensor([2.0, 0.0]).expand(3, 5, 2)
    student = torch.tensor([cosine, math.sqrt(1 - cosine**2)]).expand(3, 5, 2) * 7
    assert loss_math.token_loss(student, teacher).tolist() == pytest.approx([loss] * 3, abs=1e-6)


def test_token_loss_is_the_documents() -> None:
    student, teacher = 3 * unit_tokens(4, 6, 8), 5 * unit_tokens(4, 6, 8, seed=1)
    torch.testing.assert_close(loss_math.token_loss(student, teacher).mean(), documents_token_loss(student, teacher))


def test_token_loss_is_per_sample() -> None:
    student, teacher = unit_tokens(3, 4, 8), unit_tokens(3, 4, 8, seed=1)
    one_by_one = [loss_math.token_loss(s[None], t[None]).item() for s, t in zip(student, teacher, strict=True)]
    assert loss_math.token_loss(student, teacher).tolist() == pytest.approx(one_by_one, abs=1e-6)


def test_token_loss_counts_only_what_the_mask_keeps() -> None:
    student, teacher = unit_tokens(2, 5, 8), unit_tokens(2, 5, 8, seed=1)
    mask = torch.tensor([[True, True, False, False, True], [False, True, True, True, True]])
    kept = [loss_math.token_loss(student[b, mask[b]][None], teacher[b, mask[b]][None]).item() for b in range(2)]
    assert loss_math.token_loss(student, teacher, mask).tolist() == pytest.approx(kept, abs=1e-6)
    everything = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(
        loss_math.token_loss(student, teacher, everything), loss_math.token_loss(student, teacher)
    )


def test_token_loss_refuses_to_broadcast() -> None:
    with pytest.raises(AssertionError, match="against"):
        loss_math.token_loss(unit_tokens(2, 4, 8), unit_tokens(2, 1, 8))


# --- manifold loss ------------------------------------------------------------------------------------------


def test_the_documents_gram_example() -> None:
    assert loss_math.mean_square(DIFFERENCE).item() == pytest.approx(0.0076 / 6, rel=1e-12)
    assert round(loss_math.mean_square(DIFFERENCE).item(), 5) == 0.00127


def test_the_documents_gram_example_from_vectors() -> None:
    """Vectors whose similarity matrices are the description's: rows of their Cholesky factors."""
    student, teacher = (torch.linalg.cholesky(g) for g in (G_PREDICTED, G_PREDICTED - DIFFERENCE))
    assert loss_math.manifold_loss_sample(student, teacher).item() == pytest.approx(0.0076 / 6, rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_sample_manifold_is_the_documents_with_mask_and_triangle(size: int) -> None:
    student, teacher = unit_tokens(size, 6, 8), unit_tokens(size, 6, 8, seed=1)
    ours = loss_math.manifold_loss_sample(loss_math.pool_tokens(student), loss_math.pool_tokens(teacher))
    torch.testing.assert_close(ours, documents_manifold_loss(student, teacher))
    untriangled = documents_manifold_loss(student, teacher, upper_only=False)
    torch.testing.assert_close(ours * (size - 1) / size, untriangled)


def test_the_diagonal_never_counts() -> None:
    torch.testing.assert_close(
        loss_math.mean_square(DIFFERENCE + torch.diag(torch.arange(4.0, dtype=torch.float64))),
        loss_math.mean_square(DIFFERENCE),
    )


def test_pooling_ignores_the_length_of_tokens() -> None:
    tokens = unit_tokens(3, 4, 8)
    torch.testing.assert_close(
        loss_math.pool_tokens(tokens * torch.rand(3, 4, 1).add(0.1)), loss_math.pool_tokens(tokens)
    )
    torch.testing.assert_close(loss_math.pool_tokens(tokens).norm(dim=-1), torch.ones(3))


def test_token_manifold_is_the_naive_loop() -> None:
    student, teacher = 2 * unit_tokens(3, 4, 5), unit_tokens(3, 4, 5, seed=1)

    def cosine(tokens: Tensor, b: int, i: int, j: int) -> float:
        x, y = tokens[b, i].tolist(), tokens[b, j].tolist()
        return sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    squares = [
        (cosine(student, b, i, j) - cosine(teacher, b, i, j)) ** 2
        for b in range(3)
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    assert loss_math.manifold_loss_token(student, teacher).item() == pytest.approx(
        sum(squares) / len(squares), abs=1e-6
    )


def test_token_manifold_does_not_compare_samples() -> None:
    """A rotation of one whole sample changes no similarity within it."""
    student, teacher = unit_tokens(3, 4, 5), unit_tokens(3, 4, 5, seed=1)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)))[0]
    turned = torch.cat([student[:1] @ rotation, student[1:]])
    torch.testing.assert_close(
        loss_math.manifold_loss_token(turned, teacher), loss_math.manifold_loss_token(student, teacher)
    )


def test_a_manifold_of_one_raises() -> None:
    one = loss_math.pool_tokens(unit_tokens(1, 4, 8))
    with pytest.raises(ValueError, match="at least 2"):
        loss_math.manifold_loss_sample(one, one)
    with pytest.raises(ValueError, match="at least 2"):
        loss_math.manifold_loss_token(unit_tokens(4, 1, 8), unit_tokens(4, 1, 8))


def test_both_levels_keep_the_meaning_of_w() -> None:
    assert {level: sum(weights.values()) for level, weights in MANIFOLD_LEVELS.items()} == {
        "sample": 1.0,
        "token": 1.0,
        "both": 1.0,
    }


# --- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [loss_math.token_loss, loss_math.manifold_loss_token])
def test_bf16_tokens_are_compared_in_fp32(loss: object) -> None:
    student, teacher = unit_tokens(3, 4, 64).bfloat16(), unit_tokens(3, 4, 64, seed=1).bfloat16()
    value = loss(student, teacher)  # type: ignore[operator]
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float()))  # type: ignore[operator]


def test_bf16_tokens_are_pooled_in_fp32() -> None:
    tokens = unit_tokens(3, 4, 64).bfloat16()
    assert loss_math.pool_tokens(tokens).dtype == torch.float32
    assert torch.equal(loss_math.pool_tokens(tokens), loss_math.pool_tokens(tokens.float()))


def test_diffusion_loss_is_each_samples_mean_square_in_fp32() -> None:
    prediction, target = torch.randn(3, 2, 4, 4).bfloat16(), torch.randn(3, 2, 4, 4).bfloat16()
    by_hand = [F.mse_loss(p.double(), t.double()).item() for p, t in zip(prediction, target, strict=True)]
    value = loss_math.diffusion_loss(prediction, target)
    assert value.dtype == torch.float32
    assert value.tolist() == pytest.approx(by_hand, rel=1e-5)


def test_total_loss_is_the_documents_sum() -> None:
    diffusion, token, manifold = (torch.tensor(x) for x in (2.0, 0.66, 0.02))
    assert loss_math.total_loss(diffusion, token, manifold, 0.5, 3.0).item() == pytest.approx(2 + 0.5 * (0.66 + 0.06))
    assert loss_math.total_loss(diffusion, token, manifold, 0.0, 3.0).item() == 2.0


def test_spatial_normalisation_in_closed_form() -> None:
    """By hand: channel 0 is 1, 3, 5 over the image (mean 3, deviation 2), channel 1 is 4 everywhere."""
    tokens = torch.tensor([[[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]]], dtype=torch.float64)
    whole = loss_math.normalise_spatially(tokens, 1.0)
    torch.testing.assert_close(whole, torch.tensor([[[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]]), atol=1e-5, rtol=0)
    part = loss_math.normalise_spatially(tokens, 0.6)[0, :, 0]
    torch.testing.assert_close(part, torch.tensor([-0.4, 0.6, 1.6]), atol=1e-5, rtol=0)


def test_spatial_normalisation_is_each_images_own() -> None:
    tokens = unit_tokens(3, 8, 5)
    together = loss_math.normalise_spatially(tokens, 0.6)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[1:2], loss_math.normalise_spatially(tokens[1:2], 0.6))
    shifted = loss_math.normalise_spatially(tokens + torch.randn(3, 1, 5), 1.0)
    torch.testing.assert_close(shifted, loss_math.normalise_spatially(tokens, 1.0), atol=1e-4, rtol=1e-4)
