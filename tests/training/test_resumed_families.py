"""A run of each family of transformers and captioned U-Nets that continues from its checkpoint equals one without a
stop, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flat_photos import write_flat
from smoke_families import BACKBONES, overrides

from urepa.runs import checkpoint


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("resumed")
    write_flat(root / "photos" / "scenes", 6)
    return overrides(root / "photos", root / "caches")


def updated(trainer: Any, steps: range) -> Any:
    for step in steps:
        trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)
    return trainer


def states(trainer: Any) -> dict[str, torch.Tensor]:
    """The optimiser's state, by parameter and entry."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, p in trainer.model.named_parameters()
        for key, value in trainer.optimizer.state[p].items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_resumed_run_equals_one_without_a_stop(
    trainer_of: Callable[..., Any], given: list[str], backbone: str
) -> None:
    """Two steps, a checkpoint, another process's trainer from it, and two more steps: weights, averages, optimiser and
    validation are those of four steps."""
    whole = updated(trainer_of(*given, f"backbone={backbone}"), range(4))
    expected = whole.validate(4)
    first = updated(trainer_of(*given, f"backbone={backbone}"), range(2))
    first.save(2)
    found = checkpoint.newest(first.folder / "checkpoints")
    assert found is not None
    second = trainer_of(*given, f"backbone={backbone}")
    assert second.restore(found, None) == 2
    updated(second, range(2, 4))
    weights = dict(whole.model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in second.model.named_parameters())
    assert all(torch.equal(x, whole.ema.shadow[name]) for name, x in second.ema.shadow.items())
    ours, theirs = states(second), states(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    moved = [name for name, p in first.model.named_parameters() if not torch.equal(p, weights[name])]
    assert len(moved) > 0.5 * len(weights)
    assert second.validate(4) == expected
