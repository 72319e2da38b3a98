"""Distances between sets of features, compared with closed forms and plain loops."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import linalg, stats

from urepa.evaluation.frechet_and_kid import (
    Moments,
    frechet_distance,
    frechet_error,
    inception_score,
    kernel_distance,
    precision_recall,
    squared_mmd,
)
from urepa.evaluation.measures.image_distances_math import FeatureSet


def moments(x_nD: np.ndarray, batch: int = 10**9) -> Moments:
    found = Moments(x_nD.shape[1])
    for start in range(0, len(x_nD), batch):
        found.add(x_nD[start : start + batch])
    return found


def gaussian(mean_D: np.ndarray, covariance_DD: np.ndarray) -> Moments:
    """Moments with exactly these values."""
    found = Moments(len(mean_D))
    found.count, found.mean_D, found.scatter_DD = 101, mean_D, covariance_DD * 100
    return found


def rows(n: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)) + shift


# --- Fréchet distance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
def test_moments_are_numpys_whatever_the_batches(batch: int) -> None:
    x = (rows(300, 9, 0) * np.arange(1, 10) + 1000).astype(np.float32)  # a mean that is large beside the spread
    found = moments(x, batch)
    np.testing.assert_allclose(found.mean_D, x.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance_DD, np.cov(x.astype(float), rowvar=False), rtol=1e-9, atol=1e-9)


def test_gaussians_with_diagonal_covariances_have_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    mean_a, mean_b, var_a, var_b = rng.standard_normal(8), rng.standard_normal(8), rng.random(8), rng.random(8) * 5
    var_a[:3] = 0  # singular, as with fewer rows than features
    expected = ((mean_a - mean_b) ** 2 + (np.sqrt(var_a) - np.sqrt(var_b)) ** 2).sum()
    a, b = gaussian(mean_a, np.diag(var_a)), gaussian(mean_b, np.diag(var_b))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [400, 12])  # 12 rows of 20 features: both covariances are singular
def test_the_distance_is_that_of_scipys_matrix_root(n: int) -> None:
    x = rows(n, 20, 1) @ rows(20, 20, 2) + 3
    y = rows(n, 20, 3) @ rows(20, 20, 4) - 1
    covariances = [np.cov(z, rowvar=False) for z in (x, y)]
    offset = np.eye(20) * (1e-9 if n == 12 else 0)  # sqrtm needs it there
    root = np.real(linalg.sqrtm((covariances[0] + offset) @ (covariances[1] + offset)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-3 if n == 12 else 1e-9)


def test_a_set_has_no_distance_to_itself_and_a_shifted_one_that_of_the_shift() -> None:
    x = rows(50, 30, 5)
    assert frechet_distance(moments(x), moments(x[::-1])) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(moments(x), moments(x + 0.5)) == pytest.approx(30 * 0.25, rel=1e-9)


# --- its standard error -------------------------------------------------------------------------------------


@pytest.mark.fast(1)
@pytest.mark.parametrize(("n", "width", "shift"), [(200, 6, 0.0), (200, 6, 0.5), (40, 60, 0.3)])
def test_the_error_of_a_distance_is_its_spread_over_draws(n: int, width: int, shift: float) -> None:
    """The last case has fewer rows than features: all covariances are singular."""
    real = moments(rows(1000, width, 1) * np.linspace(0.5, 2, width))
    drawn = [rows(n, width, 100 + seed, shift) for seed in range(300)]
    spread = np.std([frechet_distance(real, moments(x)) for x in drawn])
    errors = [frechet_error(real, x, n) for x in drawn[:150]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.2)  # ± 4 % of the spread itself, and the jackknife's excess


def test_the_error_of_a_shift_has_a_closed_form() -> None:
    """In one dimension with equal variances, d = δ² has the derivative 2δ by the mean, so its error is 2δ·σ/√n."""
    x = rows(4000, 1, 3) * 0.5 + 2
    real = gaussian(np.zeros(1), np.array([[0.25]]))
    found = [frechet_error(real, part, 4000) for part in (x, x[::-1], np.random.default_rng(0).permutation(x))]
    assert np.mean(found) == pytest.approx(2 * 2 * 0.5 / np.sqrt(4000), rel=0.35)  # ten groups: 24 % each
    assert frechet_error(real, x[:1000], 4000) == pytest.approx(frechet_error(real, x[:1000], 1000) / 2, rel=1e-12)


def test_the_error_is_that_of_ten_distances_by_hand() -> None:
    real, x = moments(rows(90, 5, 4)), rows(43, 5, 5, shift=1)
    left = [np.delete(x, part, axis=0) for part in np.array_split(np.arange(43), 10)]
    theta = np.array([frechet_distance(real, moments(part)) for part in left])
    expected = np.sqrt(9 / 10 * ((theta - theta.mean()) ** 2).sum())
    assert frechet_error(real, x, 43) == pytest.approx(expected, rel=1e-9)


def test_moments_root_follows_what_is_added() -> None:
    found = moments(rows(50, 4, 6))
    before = found.root_DD
    found.add(rows(50, 4, 7) * 3)
    np.testing.assert_allclose(found.root_DD @ found.root_DD, found.covariance_DD, atol=1e-12)
    assert not np.allclose(before, found.root_DD)


# --- KID ----------------------------------------------------------------------------------------------------


def test_the_kernel_distance_is_that_of_a_double_loop() -> None:
    x, y = rows(9, 4, 6), rows(7, 4, 7, shift=0.5)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(p * q for p, q in zip(a, b, strict=True)) / 4 + 1) ** 3)

    expected = sum(kernel(x[i], x[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    expected += sum(kernel(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    expected -= 2 * sum(kernel(a, b) for a in x for b in y) / (9 * 7)
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)


def test_the_kernel_distance_is_unbiased_and_finds_a_shift() -> None:
    same = [squared_mmd(rows(60, 5, seed), rows(60, 5, 1000 + seed)) for seed in range(300)]
    assert stats.ttest_1samp(same, 0).pvalue > 0.01
    assert min(same) < 0 < max(same)
    apart = [squared_mmd(rows(60, 5, seed), rows(60, 5, 1000 + seed, shift=0.5)) for seed in range(20)]
    assert np.mean(apart) > 10 * np.std(same) / np.sqrt(20)


def test_subsets_have_their_size_and_both_ends() -> None:
    x, y = rows(40, 5, 8), rows(30, 5, 9, shift=1)
    rng = np.random.default_rng
    whole = kernel_distance(x[:30], y, 3, 30, rng(0))
    assert whole.mean == pytest.approx(squared_mmd(x[:30], y), rel=1e-12)
    assert whole.sd == pytest.approx(0, abs=1e-12)
    found = kernel_distance(x, y, 200, 10, rng(0))
    assert found == kernel_distance(x, y, 200, 10, rng(0)) != kernel_distance(x, y, 200, 10, rng(1))
    assert found.mean == pytest.approx(squared_mmd(x, y), rel=0.1)
    assert found.sd > 0.1


# --- precision and recall -----------------------------------------------------------------------------------


def by_hand(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, float]:
    def inside(points: np.ndarray, centres: np.ndarray) -> float:
        radii = [
            sorted(np.linalg.norm(c - o) for j, o in enumerate(centres) if j != i)[k - 1] for i, c in enumerate(centres)
        ]
        return float(
            np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points])
        )

    return inside(generated, real), inside(real, generated)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_plain_loops(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urepa.evaluation.frechet_and_kid.CHUNK", 7)  # several chunks and a remainder
    real, generated = rows(40, 3, 10), rows(30, 3, 11, shift=1.5) * 0.7
    found = precision_recall(real, generated, k)
    assert found == by_hand(real, generated, k)
    assert 0 < found[1] < found[0] < 1


def test_disjoint_sets_have_none_and_equal_sets_all() -> None:
    x = rows(50, 6, 12)
    assert precision_recall(x, x + 100, 3) == (0, 0)
    assert precision_recall(x, x[::-1], 3) == (1, 1)
    twice = np.repeat(rows(10, 6, 13), 5, axis=0)  # balls without any width still hold their centres
    assert precision_recall(twice, twice, 3) == (1, 1)


def test_collapsed_samples_are_precise_and_recall_nothing() -> None:
    real = rows(200, 2, 14)
    collapsed = np.repeat(real[:1], 50, axis=0)
    precision, recall = precision_recall(real, collapsed, 3)
    assert precision == 1
    assert recall == 1 / 200


# --- Inception Score ----------------------------------------------------------------------------------------


def test_inception_score_has_its_extreme_values() -> None:
    sure = np.eye(10)[np.arange(200) % 10]
    assert inception_score(sure, 10) == pytest.approx((10, 0))
    assert inception_score(np.full((20, 10), 0.1), 2) == pytest.approx((1, 0))
    assert inception_score(np.eye(10)[np.zeros(20, dtype=int)], 2) == pytest.approx((1, 0))


def test_inception_score_is_the_mean_entropy_gap() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(6), 60)
    parts = [np.exp(stats.entropy(part.T, part.mean(0)[:, None]).mean()) for part in np.split(p, 3)]
    assert inception_score(p, 3) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-12)


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        found = FeatureSet(1000)
        rng = np.random.default_rng(0)
        for _ in range(count // 100):
            found.add(rng.standard_normal((100, 64), dtype=np.float32))
        assert found.count == count
        assert found.rows_nD.shape == (1000, 64)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(50_000) < peak(2000) * 1.05
