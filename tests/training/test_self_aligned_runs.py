"""Runs of losses without a teacher, in a trainer's own updates on a small SiT: λ = 0, resuming, the averaged weights,
and the stop by a conflict of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from urepa.core.protocols import CONFLICT
from urepa.method.schedules.cutoff_math import Cutoff
from urepa.runs import checkpoint
from urepa.training.gradient_cosine import cosine_of_sums

Build = Callable[..., Any]
TAPS = {
    "layer_sync": ("loss.student=block_0", "loss.teacher=block_2"),
    "dispersive": ("loss.tap=block_0",),
    "self_representation": ("loss.student=block_0", "loss.teacher=block_2"),
}
SHORT = ("trainer.max_steps=6", "trainer.checkpoint_every=3", "trainer.validate_every=6", "trainer.log_every=1")
each = pytest.mark.parametrize("name", TAPS)


@pytest.fixture
def sit(small_sit: list[str], trainer_of: Build) -> Build:
    """sit(*overrides): a Trainer of the small SiT."""

    def build(*overrides: str) -> Any:
        own = [o for o in small_sit if not o.startswith(("head.", "loss."))]
        return trainer_of(*own, *SHORT, *overrides)

    return build


def train(trainer: Any, first: int = 0, last: int = 6) -> None:
    for step, batches in enumerate(trainer.reader.stream(first, last), first):
        trainer.update(step, batches, with_tap_gradients=False)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.backbone.named_parameters()}


@pytest.mark.fast(1)
@each
def test_at_a_lambda_of_0_the_backbone_is_that_without_the_loss_bit_for_bit(sit: Build, name: str) -> None:
    ends = []
    for overrides in ((f"loss={name}", *TAPS[name], "loss.lambda_max=0"), ("loss=none",)):
        trainer = sit(*overrides)
        assert not trainer.reader.cache.teacher_names
        train(trainer)
        ends.append(weights(trainer))
    for key, ours in ends[0].items():
        assert torch.equal(ours, ends[1][key]), key
    trainer = sit(f"loss={name}", *TAPS[name])
    train(trainer)
    assert any(not torch.equal(ours, ends[1][key]) for key, ours in weights(trainer).items())


@pytest.mark.slow
@each
def test_a_resumed_run_equals_an_uninterrupted_one(sit: Build, name: str) -> None:
    """Weights, averages, optimiser and the logged terms; the averages are those of the checkpoint."""
    whole = sit(f"loss={name}", *TAPS[name])
    whole.fit(0)
    assert whole.model.averages is whole.ema.shadow
    end = whole.tensors()
    kept = {part: {key: x.clone() for key, x in tensors.items()} for part, tensors in end.items()}
    rows = {row["step"]: row for row in map(dict, read(whole))}
    again = sit(f"loss={name}", *TAPS[name])
    found = checkpoint._open(whole.folder / "checkpoints" / "step_00000003")
    again.metrics.path.write_text((whole.folder / "metrics.jsonl").read_text())
    again.fit(again.restore(found, None))
    for part, tensors in again.tensors().items():
        for key, x in tensors.items():
            assert torch.equal(x, kept[part][key]), (part, key)
    term = {"layer_sync": "token", "dispersive": "dispersive", "self_representation": "self_distance"}[name]
    last = {row["step"]: row for row in read(again)}[6]
    for key in (f"train/{term}", f"val/{term}", "val/total", "train/total"):
        assert last[key] == rows[6][key], key
    weight = 0.5 if name == "dispersive" else 0.2
    assert last["val/total"] == pytest.approx(last["val/diffusion"] + weight * last[f"val/{term}"], rel=1e-6)


def read(trainer: Any) -> list[dict[str, Any]]:
    from urepa.runs.metrics import read_rows

    rows: list[dict[str, Any]] = read_rows(trainer.metrics.path)
    return rows


def test_sra_evaluates_the_averages_in_eval_mode_and_not_after_the_stop(sit: Build) -> None:
    trainer = sit("loss=self_representation", *TAPS["self_representation"], "schedule.stop_step=3")
    calls: list[tuple[bool, bool]] = []
    first = trainer.model.backbone.blocks[0]
    first.register_forward_hook(lambda module, inputs, output: calls.append((module.training, output.requires_grad)))
    for step, batches in enumerate(trainer.reader.stream(0, 5)):
        calls.clear()
        done = trainer.update(step, batches, with_tap_gradients=False)
        own, averaged = (True, True), (False, False)
        assert calls == ([averaged, own] if step < 3 else [own])
        assert ("self_distance" in done.terms.per_sample) == (step < 3)
    assert "val/self_distance" in trainer.validate(5), "validations still measure it"


def test_the_target_of_sra_is_that_of_the_trainers_averages(sit: Build) -> None:
    """The averages differ from the weights after an update; a model that has them as its weights gives the target."""
    trainer = sit("loss=self_representation", *TAPS["self_representation"])
    train(trainer, 0, 3)
    (batch,) = trainer.reader.read(3)
    _, output = trainer.forward(batch, 3)
    target = output.averaged["block_2"].x_BND
    s_B = trainer.loss.second_times(batch, trainer.objective)
    assert bool((s_B <= batch.t_B).all())
    assert bool((s_B < batch.t_B).any())
    trainer.model.eval()
    x_s = trainer.objective.corrupt(batch.x0, batch.noise, s_B)
    with torch.no_grad(), trainer.ema.use_averages():
        expected = trainer.model.backbone(x_s, s_B, batch.condition, ("block_2",)).features["block_2"].x_BND
    torch.testing.assert_close(target, expected)
    with torch.no_grad():
        other = trainer.model.backbone(x_s, s_B, batch.condition, ("block_2",)).features["block_2"].x_BND
    assert not torch.allclose(target, other, atol=1e-5), "the trained weights give another"


# --- the stop by a conflict of gradients ------------------------------------------------------------------------

CUT = (
    "schedule=gradient_conflict",
    "schedule.threshold=1",  # any measurement is below it
    "schedule.every=2",
    "schedule.least=2",
    "schedule.ema_decay=0.5",
    "trainer.max_steps=16",
)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("loss=layer_sync", *TAPS["layer_sync"])], ids=["repa", "layer_sync"])
def test_the_measurement_is_the_logged_cosine_and_the_teacher_is_not_asked_after_the_cut_off(
    small_sit: list[str], trainer_of: Build, overrides: tuple[str, ...]
) -> None:
    """The output layer of a SiT is 0 at first, so the first gradient that is measured is that of update 2 or later."""
    own = [o for o in small_sit if not overrides or not o.startswith("head.")]
    trainer = trainer_of(*own, *SHORT, *CUT, *overrides)
    rows = []
    for step, batches in enumerate(trainer.reader.stream(0, 16)):
        assert bool(batches[0].teachers) == (batches[0].is_aligned and not overrides)
        rows.append(trainer.log(step + 1, trainer.update(step, batches, with_tap_gradients=True)))
    cosine = next(key for key in rows[0] if key.endswith("/grad_cosine"))
    measured = [(s, rows[s][cosine]) for s in range(0, 16, 2) if cosine in rows[s] and rows[s][cosine] != 0]
    average, stop = None, 16
    for count, (step, value) in enumerate(measured, 1):
        average = value if average is None else 0.5 * average + 0.5 * value
        assert rows[step]["train/gradient_cosine_ema"] == pytest.approx(average, rel=1e-4)
        if count == 2:
            stop = step + Cutoff.delay
    assert 8 < stop < 16
    assert [row["train/lambda"] > 0 for row in rows] == [s < stop for s in range(16)]
    assert [cosine in row for row in rows] == [s < stop for s in range(16)]


def test_a_conflict_is_measured_over_all_micro_batches_and_taps() -> None:
    """[Σd², Σa², Σd·a] of two micro-batches; a gradient of 0 has no cosine."""
    sums = [
        {"a": torch.tensor([4.0, 1.0, 1.0])},
        {"a": torch.tensor([0.0, 3.0, -2.0]), "b": torch.tensor([5.0, 0.0, 0.0])},
    ]
    assert float(cosine_of_sums(sums)) == pytest.approx(-1 / (3 * 2))  # type: ignore[arg-type]
    assert cosine_of_sums([{}]) is None
    nothing = cosine_of_sums([{"a": torch.tensor([0.0, 1.0, 0.0])}])
    assert nothing is not None
    assert bool(nothing.isnan())


@pytest.mark.slow
def test_the_state_of_a_conflict_goes_through_a_checkpoint(sit: Build) -> None:
    trainer = sit("loss=layer_sync", *TAPS["layer_sync"], *CUT)
    assert trainer.loss.schedule.measures == CONFLICT
    train(trainer, 0, 7)
    state = trainer.loss.schedule.state(7)
    again = sit("loss=layer_sync", *TAPS["layer_sync"], *CUT)
    again.loss.schedule.load(7, state)
    for step in range(7, 15):
        values = [
            (s.value(step), s.asks_teacher(step), s.measures_at(step))
            for s in (trainer.loss.schedule, again.loss.schedule)
        ]
        assert values[0] == values[1]
    assert again.loss.schedule.state(7) == state
