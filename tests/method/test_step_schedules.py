"""λ and the learning rate at the steps that the description names."""

from __future__ import annotations

import math

import pytest

from urepa.method.step_schedules import cosine_with_warmup, linear_warmup


@pytest.mark.parametrize(
    ("step", "lam"), [(0, 0.0), (750, 0.125), (1500, 0.25), (2250, 0.375), (3000, 0.5), (4000, 0.5)]
)
def test_lambda_at_the_documents_steps(step: int, lam: float) -> None:
    assert linear_warmup(step, 0.5, 3000) == lam


def test_a_lambda_of_zero_stays_zero() -> None:
    assert [linear_warmup(step, 0.0, 3000) for step in (0, 1, 3000, 9000)] == [0.0] * 4


def test_without_a_warm_up_lambda_starts_at_its_peak() -> None:
    assert [linear_warmup(step, 0.5, 0) for step in (0, 1, 2)] == [0.5] * 3


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.0), (3124, 0.5), (6248, 1.0), (34364, 0.5), (62480, 0.0)],
)
def test_learning_rate_at_the_documents_steps(step: int, factor: float) -> None:
    assert cosine_with_warmup(step, 62480, 0.1) == pytest.approx(factor, abs=1e-12)


def test_learning_rate_between_the_turning_points() -> None:
    third = 6248 + (62480 - 6248) // 3
    assert cosine_with_warmup(third, 62480, 0.1) == pytest.approx((1 + math.cos(math.pi / 3)) / 2, abs=1e-9)
    assert cosine_with_warmup(62481, 62480, 0.1) == 0.0


def test_the_last_update_has_a_learning_rate_above_zero() -> None:
    """The last update's index is max_steps - 1."""
    assert 0 < cosine_with_warmup(62479, 62480, 0.1) < 1e-8


def test_learning_rate_without_a_warm_up_starts_at_its_peak() -> None:
    assert cosine_with_warmup(0, 100, 0.0) == 1.0
    assert cosine_with_warmup(0, 1, 0.0) == 1.0


def test_learning_rate_that_only_warms_up() -> None:
    assert [cosine_with_warmup(s, 4, 1.0) for s in range(5)] == [0.0, 0.25, 0.5, 0.75, 0.0]


def test_a_learning_rate_may_end_above_zero_or_stay() -> None:
    assert cosine_with_warmup(100, 100, 0.1, 0.2) == 0.2
    assert cosine_with_warmup(55, 100, 0.1, 0.2) == pytest.approx(0.6)
    assert [cosine_with_warmup(s, 100, 0.0, 1.0) for s in (0, 37, 99, 100)] == [1.0] * 4
