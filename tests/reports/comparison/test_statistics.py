"""The statistics, compared with scipy, textbook data and simulated studies without any difference."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from urepa.reports.comparison.statistics import bootstrap, holm, paired_interval, welch_interval

# Student (1908): hours of sleep gained by ten patients under two drugs
SLEEP_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SLEEP_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
STUDIES, ARMS, SEEDS = 2000, 8, 3


def test_the_paired_test_gives_students_published_result() -> None:
    found = paired_interval(SLEEP_1 - SLEEP_2)
    assert found.mean == pytest.approx(-1.58)
    assert (float(found.low), float(found.high)) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)  # R's t.test
    assert float(found.p) == pytest.approx(0.002832890, abs=1e-9)


def test_paired_and_welch_are_scipys_for_many_comparisons_at_once() -> None:
    rng = np.random.default_rng(0)
    arm, other, baseline = rng.normal(0.3, 1, (7, 5)), rng.normal(0, 1, (7, 5)), rng.normal(0, 3, (7, 4))
    expected = stats.ttest_rel(arm, other, axis=1)
    found = paired_interval(arm - other)
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose(found.low, expected.confidence_interval(0.95).low)
    np.testing.assert_allclose(found.high, expected.confidence_interval(0.95).high)
    expected = stats.ttest_ind(arm, baseline, axis=1, equal_var=False)
    found = welch_interval(arm, baseline)
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose(found.mean, arm.mean(1) - baseline.mean(1))
    np.testing.assert_allclose((found.low + found.high) / 2, found.mean)


def test_without_spread_nothing_is_claimed() -> None:
    assert np.isnan(paired_interval(np.array([0.4])).p)
    assert np.isnan(paired_interval(np.array([0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4])).p)  # 0.1, but for rounding
    zero = paired_interval(np.zeros(3))
    assert (zero.low, zero.high, zero.p) == (0, 0, 1)
    assert np.isnan(welch_interval(np.array([1.0]), np.array([1.0, 2.0])).p)
    assert np.isnan(welch_interval(np.array([1.0, 1.0]), np.array([2.0, 2.0])).p)
    mixed = paired_interval(np.array([[0.1, 0.1, 0.1], [0.1, 0.2, 0.4]]))
    assert np.isnan(mixed.p[0])
    assert mixed.p[1] == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.4], 0).pvalue)


def test_holm_is_the_closed_test_over_bonferroni() -> None:
    """Holm's adjusted p is the largest Bonferroni p of all sets of hypotheses that contain it."""
    rng = np.random.default_rng(1)
    for p in rng.uniform(0, 0.2, (20, 5)):
        sets = [s for size in range(1, 6) for s in combinations(range(5), size)]
        bonferroni = {s: min(1.0, len(s) * p[list(s)].min()) for s in sets}
        closed = [max(bonferroni[s] for s in sets if i in s) for i in range(5)]
        np.testing.assert_allclose(holm(p), closed)


def test_holm_leaves_out_comparisons_that_were_not_made() -> None:
    np.testing.assert_allclose(holm(np.array([0.03, np.nan, 0.02])), [0.04, np.nan, 0.04])
    assert holm(np.array([])).size == 0


def test_null_studies_with_three_seeds() -> None:
    """Arms that differ from a shared baseline only by noise: one in twenty comparisons is wrong, and after Holm hardly
    more than one family in twenty. Seeds shift all arms equally."""
    rng = np.random.default_rng(2)
    seed_effect = 10 * rng.standard_normal((STUDIES, 1, SEEDS))
    values = seed_effect + rng.standard_normal((STUDIES, 1 + ARMS, SEEDS))
    found = paired_interval(values[:, 1:] - values[:, :1])
    wrong = (found.low > 0) | (found.high < 0)
    assert np.array_equal(wrong, found.p < 0.05)
    assert 0.03 <= wrong.mean() <= 0.07
    assert 0.03 <= wrong.mean(0).min() <= wrong.mean(0).max() <= 0.07
    assert wrong.any(-1).mean() > 0.10  # what Holm is there for
    assert (holm(found.p) < 0.05).any(-1).mean() <= 0.06


def test_null_studies_that_are_not_paired() -> None:
    rng = np.random.default_rng(3)
    found = welch_interval(rng.standard_normal((STUDIES, SEEDS)), 3 * rng.standard_normal((STUDIES, SEEDS)))
    assert (found.p < 0.05).mean() <= 0.07


def test_the_bootstrap_needs_twenty_seeds() -> None:
    rng = np.random.default_rng(4)
    assert bootstrap(rng.standard_normal(19)) is None
    assert bootstrap(np.full(20, 0.1)) is None
    difference = rng.normal(0.5, 1, 200)
    low, high = bootstrap(difference)
    found = paired_interval(difference)  # at 200 seeds the two agree
    assert (low, high) == pytest.approx((float(found.low), float(found.high)), abs=0.02)
