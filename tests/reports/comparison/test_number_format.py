"""The format of numbers: digits follow from the spread, and are as many as a decision needs."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest

from urepa.reports.comparison.number_format import (
    delta,
    interval,
    mean_sd,
    number,
    p_value,
    signed_mean_sd,
    signed_number,
)
from urepa.reports.comparison.results import PAIRED, Difference
from urepa.reports.comparison.seed_cells import Cell


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.36834, 0.00123, "0.3683"),
        (-0.4567, 0.021, "−0.457"),
        (0.36834, float("nan"), "0.3683"),
        (1234.5, 20.0, "1234"),
        (0.0, float("nan"), "0.000"),
        (0.02, 0.0, "0.02000"),
        (3.2e-7, float("nan"), "3.200e−07"),
        (-3.24e-7, 1.1e-8, "−3.24e−07"),
        (0.5, 1e-9, "0.500000"),
    ],
)
def test_digits_follow_the_spread(value: float, spread: float, text: str) -> None:
    assert number(value, spread) == text


def test_numbers_in_words() -> None:
    assert signed_number(0.0123, 0.001) == "+0.0123"
    assert mean_sd(Cell(0.5, 0.012, 3)) == "0.500 ± 0.012"
    assert mean_sd(Cell(0.5, float("nan"), 1)) == "0.5000"
    assert [p_value(p) for p in (0.0004, 0.0321, 0.26)] == ["p < 0.001", "p = 0.032", "p = 0.26"]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.58, -0.0004, "[−0.58, −0.0004]"),
        (-0.58, -0.0049, "[−0.58, −0.005]"),
        (-0.58, -0.0096, "[−0.58, −0.01]"),
        (-0.58, 0.0004, "[−0.58, +0.0004]"),
        (0.00002, 0.58, "[+0.00002, +0.58]"),
        (-0.58, -3.2e-9, "[−0.58, −3e−09]"),
        (-0.58, 0.0, "[−0.58, 0.00]"),
        (0.0, 0.0, "[0.000, 0.000]"),
        (-0.468, -0.352, "[−0.468, −0.352]"),
    ],
)
def test_the_printed_bounds_of_an_interval_are_on_the_right_side_of_0(low: float, high: float, text: str) -> None:
    assert interval(Difference((low + high) / 2, low, high, 0.05, 3, PAIRED)) == text


def test_a_printed_difference_agrees_with_its_mark() -> None:
    """For many intervals that nearly touch 0: a printed bound has the bound's sign."""
    rng = np.random.default_rng(0)
    for width, share in zip(10 ** rng.uniform(-6, 3, 2000), rng.normal(0, 1e-3, 2000), strict=True):
        low, high = (
            (width * share, width * (1 + share)) if rng.random() < 0.5 else (-width * (1 + share), width * share)
        )
        found = Difference((low + high) / 2, low, high, 0.05, 3, PAIRED)
        read = [float(text.replace("−", "-")) for text in interval(found)[1:-1].split(", ")]
        assert [np.sign(value) for value in read] == [np.sign(low), np.sign(high)]
        assert np.sign(float(delta(found).replace("−", "-"))) == np.sign(found.mean)


def test_zero_has_no_sign() -> None:
    assert signed_number(0.0, 0.3) == "0.00"
    assert number(-0.0004, 0.29) == "0.00"
    assert number(-0.0, nan) == "0.000"
    assert mean_sd(Cell(-0.0004, 0.29, 3)) == "0.00 ± 0.29"
    assert signed_mean_sd(Cell(-0.0004, 0.29, 3)) == "−0.0004 ± 0.29"
    assert signed_mean_sd(Cell(0.012, nan, 1)) == "+0.01200"


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0497, "p = 0.0497"),
        (0.0503, "p = 0.0503"),
        (0.04996, "p = 0.04996"),
        (0.0499999, "p = 0.0499999"),
        (0.05, "p = 0.050"),
        (0.049, "p = 0.049"),
        (0.0512, "p = 0.051"),
        (0.99, "p = 0.99"),
        (0.00099, "p < 0.001"),
    ],
)
def test_a_printed_p_is_on_the_right_side_of_the_level(p: float, text: str) -> None:
    assert p_value(p) == text
