"""Similarities of features, compared with closed forms and with loops over all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from urepa.evaluation import similarity
from urepa.evaluation.similarity import cknna, linear_cka, neighbour_recall, neighbours, similarity_mae


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=9))[0]


def cosines(x_ND: Tensor) -> list[list[float]]:
    units = [row / row.norm() for row in x_ND.double()]
    return [[float(a @ b) for b in units] for a in units]


def nearest(similarities: list[list[float]], i: int, k: int) -> set[int]:
    others = sorted((j for j in range(len(similarities)) if j != i), key=lambda j: -similarities[i][j])
    return set(others[:k])


def naive_hsic(kernel: list[list[float]], other: list[list[float]]) -> float:
    """Song et al. 2012, eq. 5, term by term."""
    n = len(kernel)
    k = [[0.0 if i == j else kernel[i][j] for j in range(n)] for i in range(n)]
    m = [[0.0 if i == j else other[i][j] for j in range(n)] for i in range(n)]
    trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, m)) / ((n - 1) * (n - 2))
    chain = sum(k[i][j] * m[j][a] for i in range(n) for j in range(n) for a in range(n))
    return (trace + sums - 2 * chain / (n - 2)) / (n * (n - 3))


def naive_cknna(x_ND: Tensor, y_NE: Tensor, k: int) -> float:
    def alignment(a: list[list[float]], b: list[list[float]]) -> float:
        n = len(a)
        both = [nearest(a, i, k) & nearest(b, i, k) for i in range(n)]
        masked = [[[s[i][j] if j in both[i] else 0.0 for j in range(n)] for i in range(n)] for s in (a, b)]
        return naive_hsic(*masked)

    a, b = cosines(x_ND), cosines(y_NE)
    return alignment(a, b) / math.sqrt(alignment(a, a) * alignment(b, b))


def two_neighbourhoods() -> tuple[Tensor, Tensor]:
    """Sixteen samples in four clusters of four, in two ways, so that no two samples share a cluster in both."""
    centres, near = torch.eye(16, dtype=torch.float64), 0.01 * normal(16, 16)
    i = torch.arange(16)
    return centres[i // 4] + near, centres[i % 4] + near


@pytest.fixture(params=[5, 1024])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five rows, so that the last one is smaller; or all rows at once."""
    monkeypatch.setattr(similarity, "ENTRIES", 24 * request.param)
    monkeypatch.setattr(similarity, "ROWS", request.param)


@pytest.mark.usefixtures("block")
def test_mae_and_recall_are_those_of_all_pairs() -> None:
    x, y = normal(23, 6), normal(23, 4, seed=1)
    a, b = cosines(x), cosines(y)
    pairs = [(i, j) for i in range(23) for j in range(23) if i != j]
    assert similarity_mae(x, y) == pytest.approx(sum(abs(a[i][j] - b[i][j]) for i, j in pairs) / len(pairs), abs=1e-6)
    shared = sum(len(nearest(a, i, 5) & nearest(b, i, 5)) for i in range(23))
    assert neighbour_recall(x, y, 5) == pytest.approx(shared / (23 * 5))
    assert {frozenset(row) for row in neighbours(x, 5).tolist()} == {frozenset(nearest(a, i, 5)) for i in range(23)}


def test_mae_in_closed_form() -> None:
    """Orthogonal and parallel vectors: 0 and 1 off the diagonal."""
    assert similarity_mae(torch.eye(4), torch.ones(4, 2)) == pytest.approx(1.0)
    assert similarity_mae(torch.eye(4), 3 * torch.eye(4)) == 0.0


@pytest.mark.parametrize("measure", [lambda x, y: linear_cka(x, y), lambda x, y: cknna(x, y, 10)])
def test_alignment_with_a_rotated_and_scaled_copy_is_one(measure: Callable[[Tensor, Tensor], float]) -> None:
    x = normal(60, 8)
    assert measure(x, x) == pytest.approx(1.0)
    assert measure(x, 7 * x @ rotation(8)) == pytest.approx(1.0)
    y = x + normal(60, 8, seed=3)
    assert measure(x @ rotation(8), y) == pytest.approx(measure(x, y))
    assert measure(x, y) < 0.95


def test_cka_of_gaussians_is_that_of_their_covariance() -> None:
    """With x = z·A and y = z·B the covariances are AᵀB, AᵀA and BᵀB, whose norms give CKA."""
    a, b = normal(6, 5, seed=1), normal(6, 4, seed=2)
    z = normal(50_000, 6)
    expected = (a.mT @ b).norm() ** 2 / ((a.mT @ a).norm() * (b.mT @ b).norm())
    assert linear_cka(z @ a + 3, z @ b - 5) == pytest.approx(float(expected), abs=0.01)


@pytest.mark.usefixtures("block")
def test_cka_is_that_of_the_unbiased_kernels() -> None:
    x, y = normal(20, 6) + 1, normal(20, 4, seed=1)
    y[:, 0] += x[:, 0]
    k, m = ([[float(a @ b) for b in v] for a in v] for v in (x, y))
    naive = naive_hsic(k, m) / math.sqrt(naive_hsic(k, k) * naive_hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(naive)


def test_cka_of_independent_wide_features_is_near_zero() -> None:
    """The plain estimate is not: with as many features as samples, any two sets are similar."""
    x, y = normal(200, 400), normal(200, 400, seed=1)
    centred = [v - v.mean(0) for v in (x, y)]
    plain = (centred[0].mT @ centred[1]).norm() ** 2
    plain /= (centred[0].mT @ centred[0]).norm() * (centred[1].mT @ centred[1]).norm()
    assert plain > 0.5
    assert abs(linear_cka(x, y)) < 0.02


@pytest.mark.usefixtures("block")
def test_cknna_is_that_of_all_pairs() -> None:
    x = normal(24, 6)
    for seed, noise in ((1, 0.3), (2, 1.0), (3, 5.0)):
        y = x + noise * normal(24, 6, seed=seed)
        assert cknna(x, y, 5) == pytest.approx(naive_cknna(x, y, 5), abs=1e-9)


def test_cknna_of_constructed_neighbours() -> None:
    x, y = two_neighbourhoods()
    assert neighbour_recall(x, x, 3) == cknna(x, x, 3) == pytest.approx(1.0)
    assert neighbour_recall(x, y, 3) == cknna(x, y, 3) == 0.0
    assert naive_cknna(x, y, 3) == 0.0


def test_cka_of_equal_samples_is_undefined() -> None:
    x_ND = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    assert math.isnan(linear_cka(torch.ones(12, 3), x_ND))
    assert math.isnan(linear_cka(x_ND, torch.zeros(12, 3)))
