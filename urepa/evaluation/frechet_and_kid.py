"""Distances between two sets of features: Fréchet distance, KID, precision and recall, Inception Score.

Pure functions of feature rows, in float64. Shapes: n and m rows of two sets, D features, K classes.

No library is used because any encoder may give the features, moments are accumulated batch by batch in float64,
covariances may be singular, and the distance has a standard error. Tests compare the results with scipy.
"""

from __future__ import annotations

from functools import cached_property
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

CHUNK = 1024  # rows of a distance matrix in memory at once
GROUPS = 10  # groups of the jackknife for the Fréchet distance
FEWEST_OF_ERROR = 2 * GROUPS  # smallest number of rows for the jackknife


class Spread(NamedTuple):
    """A mean over subsets, and their standard deviation."""

    mean: float
    sd: float


class Moments:
    """Mean and covariance of rows that arrive batch by batch (Chan, Golub & LeVeque 1983). Memory does not grow with
    their number."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean_D = np.zeros(width)
        self.scatter_DD = np.zeros((width, width))

    def add(self, x_nD: np.ndarray) -> None:
        """Adds a batch of rows."""
        x_nD = x_nD.astype(np.float64)
        n, total = len(x_nD), self.count + len(x_nD)
        mean_D = x_nD.mean(0)
        centred_nD, apart_D = x_nD - mean_D, mean_D - self.mean_D
        self.scatter_DD += centred_nD.T @ centred_nD + np.outer(apart_D, apart_D) * (self.count * n / total)
        self.mean_D += apart_D * (n / total)
        self.count = total
        self.__dict__.pop("root_DD", None)

    @property
    def covariance_DD(self) -> np.ndarray:
        """The unbiased covariance."""
        assert self.count > 1, "a single row has no covariance"
        return self.scatter_DD / (self.count - 1)

    @cached_property
    def root_DD(self) -> np.ndarray:
        """The symmetric root Σ^½."""
        value_D, vector_DD = np.linalg.eigh(self.covariance_DD)
        root_DD: np.ndarray = (vector_DD * np.sqrt(np.clip(value_D, 0, None))) @ vector_DD.T
        return root_DD


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) of two Gaussians (Heusel et al. 2017, eq. 6).

    The eigenvalues of Σ_a Σ_b are those of Σ_a^½ Σ_b Σ_a^½, which is symmetric. This holds for singular covariances
    too, which result from fewer rows than features.
    """
    product_D = np.linalg.eigvalsh(a.root_DD @ b.covariance_DD @ a.root_DD)
    cross = np.sqrt(np.clip(product_D, 0, None)).sum()
    apart = np.square(a.mean_D - b.mean_D).sum()
    return float(apart + np.trace(a.covariance_DD) + np.trace(b.covariance_DD) - 2 * cross)


def frechet_error(a: Moments, rows_nD: np.ndarray, count: int) -> float:
    """The standard error of `frechet_distance(a, b)` due to the choice of the rows in b: how much it would vary with
    another draw of `count` rows. `a` counts as fixed.

    It is a delete-a-group jackknife (Kott 2001, J. Official Statistics 17(4)): with θ_k the distance without the k-th
    of K = 10 disjoint groups, the error is √((K−1)/K Σ (θ_k − mean θ)²). A distance is larger for fewer rows; all θ_k
    have the same number of rows, so this cancels. A bootstrap, whose sets repeat rows, would enlarge it. If `rows_nD`
    has only the first n of `count` rows, in an arbitrary order, the error of n rows is multiplied by √(n/count).
    """
    n = len(rows_nD)
    assert n >= FEWEST_OF_ERROR, "the caller asks for enough"
    x_nD = rows_nD.astype(np.float64)
    rooted_nD = x_nD @ a.root_DD
    distances = []
    for left_out in np.array_split(np.arange(n), GROUPS):
        x, rooted = (np.delete(rows, left_out, axis=0) for rows in (x_nD, rooted_nD))
        mean_D, degrees = x.mean(0), len(x) - 1
        cross = _nuclear_norm(rooted - rooted.mean(0)) / sqrt(degrees)
        variance = np.square(x - mean_D).sum() / degrees
        distances.append(np.square(a.mean_D - mean_D).sum() + np.trace(a.covariance_DD) + variance - 2 * cross)
    return float(np.std(distances) * sqrt(GROUPS - 1) * sqrt(n / count))


def _nuclear_norm(x_nD: np.ndarray) -> float:
    """The sum of the matrix's singular values, computed from the smaller of its two Gram matrices."""
    product = x_nD @ x_nD.T if x_nD.shape[0] < x_nD.shape[1] else x_nD.T @ x_nD
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(product), 0, None)).sum())


def squared_mmd(x_nD: np.ndarray, y_mD: np.ndarray) -> float:
    """The unbiased estimate of MMD² with the kernel (x·y / D + 1)³ (Bińkowski et al. 2018, eq. 4). It may be negative
    if the distributions are similar."""
    n, m = len(x_nD), len(y_mD)
    within = sum(
        (kernel.sum() - np.trace(kernel)) / (k * (k - 1))
        for k, kernel in ((n, _kernel(x_nD, x_nD)), (m, _kernel(y_mD, y_mD)))
    )
    return float(within - 2 * _kernel(x_nD, y_mD).mean())


def kernel_distance(
    x_nD: np.ndarray, y_mD: np.ndarray, subsets: int, subset_size: int, rng: np.random.Generator
) -> Spread:
    """KID: `squared_mmd` of random subsets of both sets, drawn without replacement."""
    assert subset_size <= min(len(x_nD), len(y_mD)), "the caller asks for what is there"
    values = [
        squared_mmd(*(rows[rng.permutation(len(rows))[:subset_size]].astype(np.float64) for rows in (x_nD, y_mD)))
        for _ in range(subsets)
    ]
    return Spread(float(np.mean(values)), float(np.std(values)))


def precision_recall(real_nD: np.ndarray, generated_mD: np.ndarray, k: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A set's manifold is the union of balls around its rows. The radius of a ball is the distance from its row to the
    k-th nearest other row. Precision is the share of generated rows on the real manifold, recall the share of real rows
    on the generated one.
    """
    real, generated = (x.astype(np.float64) for x in (real_nD, generated_mD))
    return _share_inside(generated, real, k), _share_inside(real, generated, k)


def inception_score(probabilities_nK: np.ndarray, splits: int) -> Spread:
    """exp(E KL(p(y|x) ‖ p(y))), averaged over `splits` parts of the rows (Salimans et al. 2016): from 1 to K."""
    scores = []
    for part_nK in np.array_split(probabilities_nK.astype(np.float64), splits):
        tiny = np.finfo(np.float64).tiny  # where p is 0, p log p is 0
        log_ratio = np.log(np.maximum(part_nK, tiny)) - np.log(np.maximum(part_nK.mean(0), tiny))
        scores.append(np.exp((part_nK * log_ratio).sum(1).mean()))
    return Spread(float(np.mean(scores)), float(np.std(scores)))


def _kernel(x_nD: np.ndarray, y_mD: np.ndarray) -> np.ndarray:
    return (x_nD @ y_mD.T / x_nD.shape[1] + 1) ** 3


def _squared_distances(x_nD: np.ndarray, y_mD: np.ndarray) -> Any:
    """Chunks [n', m] of the matrix of squared distances, each after the index of its first row."""
    y_m = np.square(y_mD).sum(1)
    for start in range(0, len(x_nD), CHUNK):
        x = x_nD[start : start + CHUNK]
        yield start, np.clip(np.square(x).sum(1)[:, None] + y_m - 2 * x @ y_mD.T, 0, None)


def _share_inside(points_nD: np.ndarray, of_mD: np.ndarray, k: int) -> float:
    """The share of points on the manifold of `of_mD`."""
    assert k < len(of_mD), "a row has fewer neighbours than are counted"
    radii_m = np.empty(len(of_mD))
    for start, squared in _squared_distances(of_mD, of_mD):
        rows = np.arange(len(squared))
        squared[rows, start + rows] = -1  # the row itself comes first, regardless of rounding
        radii_m[start : start + len(squared)] = np.partition(squared, k, axis=1)[:, k]
    inside = sum(int((squared <= radii_m).any(1).sum()) for _, squared in _squared_distances(points_nD, of_mD))
    return inside / len(points_nD)
