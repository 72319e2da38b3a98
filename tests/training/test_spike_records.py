"""What is recorded of updates with a spike, also by a whole trainer; episodes, resuming, the report's words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from urepa.core.errors import UserError
from urepa.reports.comparison.findings import spike_remarks
from urepa.training.checks.combinations import check
from urepa.training.spike_records import SpikeRecords

Build = Callable[..., Any]
CPU = torch.device("cpu")
NORM = torch.tensor(2.0)


def lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "spikes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def noted(records: SpikeRecords, flags: str, first: int = 0) -> None:
    """An update for each letter; S is a spike."""
    for step, letter in enumerate(flags, first):
        values = {"manifold": torch.tensor(0.5 + step), "token": torch.tensor(0.25)}
        records.note(step, [f"a{step}", f"b{step}"], values, NORM, {"lambda": 0.5}, torch.tensor(float(letter == "S")))


def records_in(folder: Path) -> SpikeRecords:
    return SpikeRecords(folder, CPU, lambda keys: [int(key[1:]) % 3 for key in keys])


def test_a_spike_is_recorded_with_what_led_to_it(tmp_path: Path) -> None:
    records = records_in(tmp_path)
    noted(records, "..S.")
    records.write(is_main=True)
    line = {"step": 2, "lambda": 0.5, "grad_norm": 2.0, "terms": {"manifold": 2.5, "token": 0.25}}
    assert lines(tmp_path) == [line | {"sample_ids": ["a2", "b2"], "classes": [2, 2]}]
    noted(records, "S.", first=4)
    records.write(is_main=False)
    assert len(lines(tmp_path)) == 1, "rank 0 alone writes"


def test_consecutive_spikes_are_one_episode_also_over_a_checkpoint(tmp_path: Path) -> None:
    records = records_in(tmp_path)
    noted(records, ".SS.S")
    assert records.episodes.item() == 2
    other = records_in(tmp_path)
    other.load(records.state())
    noted(other, "S.SSS.", first=5)
    assert other.episodes.item() == 3
    records.write(True)
    other.write(True)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4, 5, 7, 8, 9]
    other.cut(5)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4]


def test_the_report_says_how_often_and_for_how_long() -> None:
    def arm(lambda_max: float = 0.5, **values: float) -> Any:
        config = {"loss.lambda_max": str(lambda_max)}
        run = SimpleNamespace(last=lambda key: values.get(key.partition("/")[2]), last_step=2000, config=config)
        return SimpleNamespace(label="mine", runs={0: run, 1: run})

    assert spike_remarks(arm(manifold_spikes=0.0)) == []
    said = spike_remarks(arm(manifold_spikes=30.0, spike_episodes=10.0))
    assert said == [
        "mine: 15.0 spikes of the manifold loss in 1,000 updates; it recovered after 3.0 updates on average"
    ]
    assert spike_remarks(arm(0.0, manifold_spikes=30.0)) == [], "the control does not train on that loss"
    assert spike_remarks(arm(manifold_spikes=30.0)) == ["mine: 15.0 spikes of the manifold loss in 1,000 updates"]


@pytest.mark.slow
def test_skipping_needs_a_threshold(compose: Build) -> None:
    for overrides in (["loss=none"], ["loss.spike_threshold=inf"]):
        with pytest.raises(UserError, match=r"trainer\.skip_spikes=true has no effect without a threshold"):
            check(compose(*overrides, "trainer.skip_spikes=true"), [])
    check(compose("trainer.skip_spikes=true"), [])


@pytest.mark.slow
@pytest.mark.parametrize("skips", [False, True])
def test_a_trainer_records_each_spike_and_skips_it_if_asked_to(build_trainer: Build, skips: bool) -> None:
    """Every manifold loss is above a threshold of 0."""
    asked = ("loss.spike_threshold=0", "loss.warmup_steps=1", f"trainer.skip_spikes={skips}", "trainer.log_every=1")
    trainer = build_trainer(*asked)
    for step in range(3):
        batches = trainer.reader.read(step)
        update = trainer.update(step, batches, with_tap_gradients=False)
        if step == 0:
            start = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}
    assert any(not torch.equal(start[k], v) for k, v in trainer.model.named_parameters()) != skips
    row = trainer.log(3, update)
    assert (row["guard/manifold_spikes"], row["guard/spike_episodes"]) == (2.0, 1.0)
    assert row["guard/skipped_steps"] == (2.0 if skips else 0.0)
    first, last = lines(trainer.folder)
    assert (first["step"], last["step"]) == (1, 2)
    assert last["sample_ids"] == batches[0].ids
    classes = {s.sample_id: s.class_id for s in trainer.reader.cache.splits["train"]}
    assert last["classes"] == [classes[i] for i in batches[0].ids]
    assert last["lambda"] == trainer.loss.lam(2)
    assert last["terms"] == pytest.approx({k: v.item() for k, v in update.terms.means().items()})
    assert last["grad_norm"] == pytest.approx(update.norms["all"].item())
    assert last["lr"] == {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
