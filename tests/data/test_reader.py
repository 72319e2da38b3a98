"""Batches by address: every layout reads the same global batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from class_ids import ids_of

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.types import Batch
from urepa.data.cache import Cache
from urepa.data.class_conditions import ClassConditions
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.method.objectives.ddpm_math import VelocityMath


@pytest.fixture(scope="module")
def objective() -> VelocityMath:
    return VelocityMath(0.00085, 0.012, "linear", 1000)


def dropping(cache: Cache, cfg_dropout: float) -> Cache:
    return replace(cache, conditions=ClassConditions.withheld_with(cfg_dropout))


def joined(batches: list[Batch]) -> dict[str, Any]:
    tensors = ("x0", "noise", "t_B", "teacher_BND")
    return {name: torch.cat([getattr(b, name) for b in batches]) for name in tensors} | {
        "ids": [i for b in batches for i in b.ids],
        "classes": torch.cat([ids_of(b.condition, 3) for b in batches]),
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(v == other[k] if k == "ids" else torch.equal(v, other[k]) for k, v in one.items())


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (2, 4), (8, 1)])
def test_every_layout_reads_the_same_global_batch(cache: Cache, objective: Any, world: int, accumulation: int) -> None:
    whole = TrainingReader(dropping(cache, 0.5), objective, Layout(8), seed=5)
    ranks = [
        TrainingReader(dropping(cache, 0.5), objective, Layout(8, accumulation, rank, world), seed=5)
        for rank in range(world)
    ]
    for step in (0, 2, 4):
        parts = [reader.read(step) for reader in ranks]
        assert all(len(batches) == accumulation for batches in parts)
        in_order = [parts[rank][micro] for micro in range(accumulation) for rank in range(world)]
        assert same(joined(in_order), joined(whole.read(step)))


def test_an_epoch_is_a_permutation_without_its_tail(cache: Cache, objective: Any) -> None:
    reader = TrainingReader(dropping(cache, 0.1), objective, Layout(8), seed=0)
    assert reader.steps_per_epoch == 3  # of 30 samples, 6 are left over
    epochs = [[i for step in range(3) for i in reader.read(3 * epoch + step)[0].ids] for epoch in range(3)]
    train = {s.sample_id for s in cache.splits["train"]}
    assert all(len(set(epoch)) == 24 and set(epoch) <= train for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) == 3  # the tail is not the same one each time


def test_seeds_change_everything_that_is_drawn(cache: Cache, objective: Any) -> None:
    one, other = (joined(TrainingReader(dropping(cache, 0.1), objective, Layout(24), seed).read(0)) for seed in (0, 1))
    assert one["ids"] != other["ids"]
    assert not torch.equal(one["noise"], other["noise"])
    assert not torch.equal(one["t_B"], other["t_B"])


def test_arms_with_one_seed_are_paired(cache: Cache, objective: Any) -> None:
    """Dropout has its own purpose: with and without it, all other draws are the same."""
    one, other = (joined(TrainingReader(dropping(cache, p), objective, Layout(8), 0).read(3)) for p in (0.0, 1.0))
    assert same({k: v for k, v in one.items() if k != "classes"}, other)


def test_noise_differs_between_positions_and_steps(cache: Cache, objective: Any) -> None:
    reader = TrainingReader(dropping(cache, 0.1), objective, Layout(8), seed=0)
    noise = torch.cat([reader.read(step)[0].noise for step in range(3)])
    assert len({x.numpy().tobytes() for x in noise}) == 24


@pytest.mark.parametrize("cfg_dropout", [0.0, 1.0])
def test_dropout_at_its_ends(cache: Cache, objective: Any, cfg_dropout: float) -> None:
    batch = TrainingReader(dropping(cache, cfg_dropout), objective, Layout(24), 0).read(0)[0]
    classes = {s.sample_id: s.class_id for s in cache.splits["train"]}
    kept = [classes[i] for i in batch.ids]
    assert ids_of(batch.condition, 3).tolist() == (kept if cfg_dropout == 0 else [3] * 24)


def test_dropout_has_its_share(cache: Cache, objective: Any) -> None:
    reader = TrainingReader(dropping(cache, 0.25), objective, Layout(24), 0)
    dropped = torch.cat([ids_of(reader.read(step)[0].condition, 3) for step in range(30)]) == 3
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.06)


def test_dropout_is_one_draw_of_each_address(cache: Cache, objective: Any) -> None:
    reader = TrainingReader(dropping(cache, 0.3), objective, Layout(8, 2), seed=4)
    for step in range(6):
        dropped = torch.cat([ids_of(batch.condition, 3) for batch in reader.read(step)]) == 3
        assert dropped.tolist() == [random_draws.generator(4, "drop", step, p).random() < 0.3 for p in range(8)]


def test_a_dropout_of_other_parts_is_a_user_error(cache: Cache, objective: Any) -> None:
    other = replace(cache, conditions=ClassConditions({"text": 0.1}))
    with pytest.raises(UserError, match="condition has no part 'text'; it has class"):
        TrainingReader(other, objective, Layout(8), seed=4)


def test_a_stream_is_its_reads_from_any_start(cache: Cache, objective: Any) -> None:
    reader = TrainingReader(dropping(cache, 0.1), objective, Layout(8, 2), seed=0)
    direct = [joined(reader.read(step)) for step in range(7)]
    for start, stop in ((0, 7), (4, 7), (6, 7), (7, 7)):
        streamed = [joined(batches) for batches in reader.stream(start, stop)]
        assert len(streamed) == stop - start
        assert all(same(a, b) for a, b in zip(streamed, direct[start:stop], strict=True))


def test_a_stream_that_is_closed_early_ends_its_thread(cache: Cache, objective: Any) -> None:
    import threading

    stream = TrainingReader(cache, objective, Layout(8), 0).stream(0, 100)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("reader")]


def test_a_batch_larger_than_the_data_is_a_user_error(cache: Cache, objective: Any) -> None:
    with pytest.raises(UserError, match=r"trainer.batch_size=32 is more than the 30 training samples"):
        TrainingReader(cache, objective, Layout(32), 0)


def test_a_layout_that_does_not_divide_is_refused() -> None:
    with pytest.raises(AssertionError):
        Layout(8, accumulation=3)


# --- validation ---------------------------------------------------------------------------------------------


def by_id(cache: Cache, objective: Any, group: int) -> dict[str, dict[str, Any]]:
    reader = ValidationReader(cache, objective, group)
    found = {}
    for index in range(len(reader.groups)):
        batch = reader.read(index)
        for i, name in enumerate(batch.ids):
            found[name] = {
                "noise": batch.noise[i].tolist(),
                "t": int(batch.t_B[i]),
                "class": int(ids_of(batch.condition, 3)[i]),
            }
    return found


def test_validation_draws_belong_to_the_sample(cache: Cache, objective: Any) -> None:
    groups = [by_id(cache, objective, group) for group in (2, 4, 6)]
    assert groups[0] == groups[1] == groups[2]
    assert set(groups[0]) == {s.sample_id for s in cache.splits["val"]}


def test_validation_keeps_every_condition(cache: Cache, objective: Any) -> None:
    classes = {s.sample_id: s.class_id for s in cache.splits["val"]}
    assert {name: seen["class"] for name, seen in by_id(cache, objective, 6).items()} == classes


@pytest.mark.parametrize(("cfg_dropout", "given"), [(0.0, True), (0.9, True), (1.0, False)])
def test_validation_gives_the_classes_unless_none_was_ever_given(
    cache: Cache, objective: Any, cfg_dropout: float, given: bool
) -> None:
    condition = ValidationReader(dropping(cache, cfg_dropout), objective, 4).read(0).condition
    assert (ids_of(condition, 3).tolist() != [3] * 4) is given
    assert ids_of(condition.null(), 3).tolist() == [3] * 4


def test_validation_groups_are_shuffled_once_and_marked_if_full(cache: Cache, objective: Any) -> None:
    reader = ValidationReader(cache, objective, 4)
    assert reader.full == [True, False]
    assert [len(group) for group in reader.groups] == [4, 2]
    classes = [s.class_id for group in reader.groups for s in group]
    assert classes != sorted(classes)
    again = ValidationReader(cache, objective, 4)
    assert again.groups == reader.groups


def test_every_validation_sample_has_its_own_noise(cache: Cache, objective: Any) -> None:
    assert len({str(seen["noise"]) for seen in by_id(cache, objective, 6).values()}) == 6


def test_nothing_to_validate_on_is_a_user_error(cache: Cache, objective: Any) -> None:
    with pytest.raises(UserError, match="validation_group=4 is more than the 0 validation samples"):
        ValidationReader(replace(cache, splits=cache.splits | {"val": []}), objective, 4)
