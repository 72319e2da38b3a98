"""The smallest difference that can be found, compared with simulation and values computed by hand."""

from __future__ import annotations

import html
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.smallest_difference import POWER, smallest_differences, smallest_sentence
from urepa.reports.comparison.statistics import detection_power, paired_interval, smallest_detectable, spread_of
from urepa.reports.comparison.tables import markdown, terminal

Add, Summarise = Callable[..., None], Callable[..., Results]


@pytest.mark.fast(1)
@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_smallest_effect_is_found_in_four_of_five_studies(seeds: int) -> None:
    effect = smallest_detectable(seeds, POWER)
    found = paired_interval(np.random.default_rng(0).normal(effect, 1.0, (100_000, seeds)))
    assert ((found.low > 0) | (found.high < 0)).mean() == pytest.approx(POWER, abs=0.005)
    assert detection_power(effect, seeds) == pytest.approx(POWER)


@pytest.mark.slow
def test_the_smallest_effects_are_those_of_published_tables() -> None:
    """Cohen 1988, table 2.4.1: a two-sided t test of one sample at 0.05 finds d = 0.5 with 80 % power with 33 or 34
    values."""
    assert smallest_detectable(34, 0.8) < 0.5 < smallest_detectable(33, 0.8)
    assert [smallest_detectable(n, 0.8) for n in (2, 3, 5)] == sorted([smallest_detectable(n, 0.8) for n in (2, 3, 5)])[
        ::-1
    ]


@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("seeds", [2, 3, 10, 200])
def test_the_power_is_that_of_the_noncentral_t(effect: float, seeds: int) -> None:
    bound, shift = stats.t.ppf(0.975, seeds - 1), effect * np.sqrt(seeds)
    expected = stats.nct.sf(bound, seeds - 1, shift) + stats.nct.cdf(-bound, seeds - 1, shift)
    assert detection_power(effect, seeds) == pytest.approx(expected, abs=1e-7)


def test_a_spread_is_read_from_its_interval() -> None:
    differences = np.array([0.1, 0.4, -0.2, 0.3])
    found = paired_interval(differences)
    assert spread_of(float(found.high - found.low), 4) == pytest.approx(differences.std(ddof=1))


@pytest.mark.slow
def test_the_spread_is_pooled_over_the_arms_that_have_one(add: Add, results: Summarise) -> None:
    """Two arms, weighted by n − 1. An arm that equals the baseline except for its name, and one that is not paired, do
    not count."""
    one, other = [0.1, 0.3, 0.2], [0.0, 0.5, 0.1, -0.2]
    add(seeds=(0, 1, 2, 3), values=lambda seed: {"val/diffusion": 1.0 + seed})
    for depth, by in ((1, one), (3, other), (4, [0.0] * 4)):
        values = {seed: {"val/diffusion": 1.0 + seed + d} for seed, d in enumerate(by)}
        add(f"d{depth}", {"head.depth": depth}, tuple(values), values.__getitem__)
    add("half", {"data.limit": 4000}, (0, 1, 2, 3), lambda seed: {"val/diffusion": 7.0 * seed})
    found = results(baseline="baseline")
    seeds, smallest = smallest_differences(found)
    pooled = np.sqrt((2 * np.var(one, ddof=1) + 3 * np.var(other, ddof=1)) / 5)
    assert seeds == 3
    assert smallest["val/diffusion"] == pytest.approx(smallest_detectable(3, 0.8) * pooled)
    sentence = smallest_sentence(found)
    assert sentence.startswith(
        "The smallest true differences that the paired 95 % interval of 3 seeds detects in 80 % of"
    )
    assert f"diffusion loss {smallest['val/diffusion']:.4g}" in sentence
    assert sentence in terminal(found, 120)
    assert sentence in html.unescape(page(found, [], []))
    assert "The smallest true differences" in markdown(found)


def test_nothing_is_reported_without_pairs(add: Add, results: Summarise) -> None:
    add(seeds=(0,))
    add("deep", {"head.depth": 3}, (0,))
    assert smallest_sentence(results()) == ""
