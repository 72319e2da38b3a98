"""The share of initial weights in an average, compared with the product of its decays."""

from __future__ import annotations

from math import prod

import pytest

from urepa.core.ema_initial_weights import initial_share, lag_sentence


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.3, 0.9, 0.99, 0.9995])
@pytest.mark.parametrize("updates", [0, 1, 2, 40, 900, 3000])
def test_the_share_is_the_product_of_the_decays(decay: float, updates: int) -> None:
    assert initial_share(decay, updates, False) == pytest.approx(decay**updates)
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(updates)]
    assert initial_share(decay, updates, True) == pytest.approx(prod(decays), rel=1e-9)


def test_the_share_of_long_runs_underflows_to_zero_without_an_error() -> None:
    assert initial_share(0.9995, 10_000_000, False) == initial_share(0.9995, 10_000_000, True) == 0
    assert 0 < initial_share(0.9999, 400_000, True) < initial_share(0.9999, 400_000, False) < 1e-17


def test_after_a_warm_up_only_more_updates_help() -> None:
    assert "set trainer.ema_warmup=true" in lag_sentence(0.67, 0.99, 40, False)
    assert lag_sentence(0.1, 0.99, 1, True).endswith(": train longer")
