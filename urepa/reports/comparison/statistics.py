"""Statistics of the difference between two arms: paired t, Welch's t, Holm, and the bootstrap from 20 seeds on; and the
rank correlation over arms.

Shapes: A comparisons or arms, S seeds, P orders of the arms; any number of axes may stand before A and S.

Both t tests and the bootstrap are SciPy's. SciPy has no Holm correction, and that of statsmodels treats NaN (no
comparison was made) as a p-value. SciPy's noncentral t is NaN in the lower tail for large effects, and its p of
Spearman's ρ is that of many arms.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 20  # seeds; with three seeds, the percentile interval excludes 0 in a quarter of null cases
RESAMPLES = 9999
ALL_ORDERS = 7  # arms, whose 5,040 orders are all counted
ROUNDING = 1e-9  # a relative spread below it is rounding error

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean difference, its 95 % interval and its two-sided p. NaN if there is none."""

    mean: Array
    low: Array
    high: Array
    p: Array


def _same(value_S: Array) -> NDArray[np.bool_]:
    """Whether the value is the same for all seeds, up to rounding."""
    return np.asarray(np.ptp(value_S, axis=-1) <= ROUNDING * np.abs(value_S).max(-1))


def paired_interval(difference_S: Array) -> Interval:
    """Student's t of differences over their last axis. With fewer than two seeds, or if every seed differs by the same
    amount, there is no interval and no p. If all differences are exactly 0, p is 1."""
    from scipy import stats

    mean = difference_S.mean(-1)
    if difference_S.shape[-1] < 2:
        return Interval(mean, *[np.full_like(mean, np.nan)] * 3)
    flat = _same(difference_S)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal differences get no interval below
        test = stats.ttest_1samp(difference_S, 0.0, axis=-1)
        interval = test.confidence_interval(CONFIDENCE)
    found = (np.where(flat, np.nan, x) for x in (interval.low, interval.high, test.pvalue))
    zero = flat & (mean == 0)
    return Interval(mean, *(np.where(zero, at_0, x) for at_0, x in zip((0.0, 0.0, 1.0), found, strict=True)))


def welch_interval(arm_S: Array, baseline_S: Array) -> Interval:
    """Welch's t of two arms that did not see the same data, over the last axis."""
    from scipy import stats

    mean = arm_S.mean(-1) - baseline_S.mean(-1)
    flat = _same(arm_S) & _same(baseline_S)
    if min(arm_S.shape[-1], baseline_S.shape[-1]) < 2 or np.all(flat):
        return Interval(mean, *[np.full_like(mean, np.nan)] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal values: the result is NaN below, or correct
        test = stats.ttest_ind(arm_S, baseline_S, axis=-1, equal_var=False)
        interval = test.confidence_interval(CONFIDENCE)
    return Interval(mean, *(np.where(flat, np.nan, x) for x in (interval.low, interval.high, test.pvalue)))


def holm(p_A: Array) -> Array:
    """Holm's adjusted p over the last axis (Holm 1979). NaN, where no comparison was made, is not counted."""
    order = np.argsort(p_A, axis=-1)  # NaN last
    ranked = np.take_along_axis(p_A, order, axis=-1)
    made = np.isfinite(p_A).sum(-1, keepdims=True)
    stepped = np.maximum.accumulate(ranked * (made - np.arange(p_A.shape[-1])), axis=-1)
    adjusted = np.empty_like(p_A)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return adjusted


def rank_correlation(x_A: Array, y_A: Array) -> tuple[float, float]:
    """Spearman's ρ and its two-sided p, the share of orders of the arms whose |ρ| is at least as large: of all orders
    for up to `ALL_ORDERS` arms, else of random ones, of which the observed order counts as one. Equal values share
    their mean rank. NaN if the values of one side are all equal."""
    from scipy import stats

    rank_A, other_A = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (x_A, y_A))
    scale = float(np.sqrt((rank_A @ rank_A) * (other_A @ other_A)))
    if scale == 0:
        return float("nan"), float("nan")
    orders_PA, more = _orders(len(x_A))
    rho = float(rank_A @ other_A) / scale
    extreme = int((np.abs(other_A[orders_PA] @ rank_A) / scale >= abs(rho) - ROUNDING).sum())
    return rho, (extreme + more) / (len(orders_PA) + more)


@lru_cache
def _orders(arms: int) -> tuple[NDArray[np.int64], int]:
    """Orders of the arms [P,A], and how many are to be counted besides: all orders, or random ones and the observed
    one."""
    if arms <= ALL_ORDERS:
        return np.array(list(permutations(range(arms)))), 0
    return np.random.default_rng(0).permuted(np.tile(np.arange(arms), (RESAMPLES, 1)), axis=1), 1


def bootstrap(difference_S: Array) -> tuple[float, float] | None:
    """The BCa interval of a mean difference (Efron 1987); None with fewer than 20 seeds or without spread."""
    from scipy import stats

    if len(difference_S) < BOOTSTRAP_FROM or _same(difference_S):
        return None
    found = stats.bootstrap(
        (difference_S,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def factor_of_two_seeds() -> float:
    """The half-width of `paired_interval` with two seeds, as a multiple of the distance |d₁ − d₂| between the two
    differences: the t quantile with one degree of freedom, times (|d₁ − d₂| / √2) / √2, where |d₁ − d₂| / √2 is the
    standard deviation."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, 1) / 2)


def detection_power(effect: float, seeds: int) -> float:
    """The share of studies in which `paired_interval` excludes 0, in [0, 1]: the power of Student's t test, which has
    the noncentral t distribution. `effect`: the mean difference in standard deviations of the differences over seeds,
    at least 0. `seeds`: at least 2. The integral is over the estimated standard deviation, which is chi-distributed.
    SciPy's noncentral t is not used: it is NaN for large effects, such as 8 with one degree of freedom."""
    from scipy import integrate, special, stats

    degrees, shift = seeds - 1, effect * np.sqrt(seeds)
    bound = stats.t.ppf((1 + CONFIDENCE) / 2, degrees) / np.sqrt(degrees)

    def share(chi: float) -> float:
        outside = special.ndtr(shift - bound * chi) + special.ndtr(-shift - bound * chi)
        return float(stats.chi.pdf(chi, degrees) * outside)

    middle = np.sqrt(degrees)
    return float(integrate.quad(share, max(0.0, middle - 10), middle + 10, points=[middle], limit=200)[0])


def smallest_detectable(seeds: int, power: float) -> float:
    """The smallest effect, as in `detection_power`, that is detected in a share `power` of studies. `power`: above 0.05
    and below 1. `seeds`: at least 2."""
    from scipy.optimize import brentq

    most = 1.0
    while detection_power(most, seeds) < power:
        most *= 2
    return float(brentq(lambda effect: detection_power(effect, seeds) - power, 0.0, most))


def spread_of(width: float, seeds: int) -> float:
    """The standard deviation of differences over seeds for which `paired_interval` has this full width."""
    from scipy import stats

    return float(width / 2 * np.sqrt(seeds) / stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
