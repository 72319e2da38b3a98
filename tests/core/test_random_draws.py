"""Random draws by address: what changes a draw and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from urepa.core import random_draws

HOME = {"seed": 3, "purpose": "noise", "step": 5, "position": 7}


def numbers(count: int = 8, **changes: object) -> list[float]:
    return random_draws.normal((count,), random_draws.generator(**(HOME | changes))).tolist()  # type: ignore[arg-type]


def test_an_address_always_gives_the_same_numbers() -> None:
    assert numbers() == numbers()


def test_the_numbers_stay_the_same_over_versions() -> None:
    """Resumed runs and published results depend on these numbers."""
    frozen = [0.004905384499579668, 0.0670991763472557, 0.2605378031730652]
    assert numbers(3) == pytest.approx(frozen, abs=1e-7)
    assert random_draws.permutation(0, 1, 8).tolist() == [3, 0, 7, 2, 6, 1, 5, 4]
    assert random_draws.digest64("a", "b") == 1212841174890269944


@pytest.mark.parametrize("change", [{"seed": 4}, {"purpose": "t"}, {"step": 6}, {"position": 8}])
def test_every_part_of_an_address_matters(change: dict[str, object]) -> None:
    assert not set(numbers()) & set(numbers(**change))


def test_step_and_position_are_not_mixed_up() -> None:
    assert not set(numbers(step=7, position=5)) & set(numbers(step=5, position=7))


def test_long_draws_do_not_run_into_the_next_address() -> None:
    long = set(numbers(100_000))
    for neighbour in ({"position": 8}, {"step": 6}):
        assert len(long & set(numbers(1000, **neighbour))) < 50  # float32 numbers coincide now and then


def test_draws_for_another_purpose_do_not_shift_the_numbers() -> None:
    alone = [numbers(step=s) for s in range(3)]
    between = []
    for s in range(3):
        numbers(step=s, purpose="something new")
        between.append(numbers(step=s))
    assert between == alone


def test_draws_leave_the_global_generators_alone() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    numbers()
    random_draws.permutation(0, 0, 10)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_normal_is_standard_and_float32() -> None:
    x = random_draws.normal((40, 50, 50), random_draws.generator(0, "noise"))
    assert x.dtype == torch.float32
    assert (x.mean().item(), x.std().item()) == pytest.approx((0, 1), abs=0.01)


def test_a_permutation_is_one_and_changes_by_epoch_and_seed() -> None:
    orders = [random_draws.permutation(seed, epoch, 50).tolist() for seed in range(2) for epoch in range(2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_the_number_of_a_sample_id_never_changes() -> None:
    assert random_draws.unit_interval("split", "digits_0000") == 0.6934011784832133
    assert random_draws.unit_interval("probe", "train_cat_00") == 0.4452916056539788


def test_sample_ids_numbers_are_uniform_and_differ_by_purpose() -> None:
    split = np.array([random_draws.unit_interval("split", f"id{i}") for i in range(4000)])
    probe = np.array([random_draws.unit_interval("probe", f"id{i}") for i in range(4000)])
    assert split.min() >= 0
    assert split.max() < 1
    np.testing.assert_allclose(np.histogram(split, 4, (0, 1))[0] / 4000, 0.25, atol=0.03)
    assert abs(np.corrcoef(split, probe)[0, 1]) < 0.06


def test_joined_names_do_not_collide() -> None:
    assert random_draws.digest64("ab", "c") != random_draws.digest64("a", "bc")


def test_torch_seed_leaves_the_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    with random_draws.torch_seed(0, "head"):
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_seed_depends_on_seed_and_part_alone() -> None:
    def inside(seed: int, part: str) -> list[float]:
        with random_draws.torch_seed(seed, part):
            return torch.randn(4).tolist()

    first = inside(0, "head")
    torch.randn(100)
    assert inside(0, "head") == first
    assert inside(1, "head") != first
    assert inside(0, "backbone") != first
