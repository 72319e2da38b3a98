"""Runs of Self-Transcendence's two stages in a trainer's own updates on a small SiT: λ = 0, resuming, the weights of
the first run, and the stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from urepa.core.errors import UserError
from urepa.runs import checkpoint
from urepa.runs.metrics import read_rows
from urepa.training.earlier_weights import earlier_weights

Build = Callable[..., Any]
SHORT = ("trainer.max_steps=6", "trainer.checkpoint_every=3", "trainer.validate_every=6", "trainer.log_every=1")
FIRST = ("loss=latent_structure", "loss.student=block_0", "loss.hidden=16", "loss.times=[0.2,0.9]")
SECOND = ("loss=self_transcendence", "loss.student=block_1", "loss.teacher=block_2", *FIRST[2:])


@pytest.fixture
def sit(small_sit: list[str], trainer_of: Build) -> Build:
    """sit(*overrides): a Trainer of the small SiT, whose samples have classes."""

    def build(*overrides: str) -> Any:
        own = [o for o in small_sit if not o.startswith(("head.", "loss.", "teacher"))]
        return trainer_of(*own, *SHORT, "data.cfg_dropout=0.5", *overrides)

    return build


@pytest.fixture
def first(sit: Build) -> Any:
    """A trainer of the first stage, at its end."""
    trainer = sit(*FIRST)
    trainer.fit(0)
    return trainer


def train(trainer: Any, last: int = 6) -> None:
    for step, batches in enumerate(trainer.reader.stream(0, last)):
        trainer.update(step, batches, with_tap_gradients=False)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.backbone.named_parameters()}


@pytest.mark.slow
def test_at_a_lambda_of_0_the_backbone_is_that_without_the_loss_bit_for_bit(sit: Build, first: Any) -> None:
    second = (*SECOND, f"loss.guide={first.folder}")
    ends = []
    for overrides in (("loss=none",), (*FIRST, "loss.lambda_max=0"), (*second, "loss.lambda_max=0"), FIRST, second):
        trainer = sit(*overrides)
        train(trainer)
        ends.append(weights(trainer))
    none, *off, of_first, of_second = ends
    assert all(torch.equal(one[key], none[key]) for one in off for key in none)
    assert all(any(not torch.equal(one[key], none[key]) for key in none) for one in (of_first, of_second))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_resumed_run_equals_an_uninterrupted_one(sit: Build, first: Any, stage: str) -> None:
    overrides = FIRST if stage == "first" else (*SECOND, f"loss.guide={first.folder}")
    term = {"first": "latents", "second": "guided_distance"}[stage]
    whole = sit(*overrides)
    whole.fit(0)
    kept = {part: {k: x.clone() for k, x in tensors.items()} for part, tensors in whole.tensors().items()}
    rows = {row["step"]: row for row in read_rows(whole.metrics.path)}
    assert rows[6]["val/total"] == pytest.approx(rows[6]["val/diffusion"] + 0.5 * rows[6][f"val/{term}"], rel=1e-6)
    again = sit(*overrides)
    again.metrics.path.write_text((whole.folder / "metrics.jsonl").read_text())
    again.fit(again.restore(checkpoint._open(whole.folder / "checkpoints" / "step_00000003"), None))
    for part, tensors in again.tensors().items():
        assert all(torch.equal(x, kept[part][key]) for key, x in tensors.items()), part
    assert {row["step"]: row for row in read_rows(again.metrics.path)}[6][f"val/{term}"] == rows[6][f"val/{term}"]


@pytest.mark.slow
def test_the_target_is_of_the_first_runs_averages_under_the_whole_condition(sit: Build, first: Any) -> None:
    trainer = sit(*SECOND, f"loss.guide={first.folder}")
    train(trainer, 3)
    (batch,) = trainer.reader.read(3)
    assert batch.whole is not None
    assert bool(batch.whole["class"].given_B.all())
    assert not bool(batch.condition["class"].given_B.all())
    _, output = trainer.forward(batch, 3)
    x_t = trainer.objective.corrupt(batch.x0, batch.noise, batch.t_B)
    first.model.eval()
    with torch.no_grad(), first.ema.use_averages():
        c, u = (
            first.model.backbone(x_t, batch.t_B, condition, ("block_2",)).features["block_2"].x_BND
            for condition in (batch.whole, batch.whole.null())
        )
    torch.testing.assert_close(output.frozen["block_2"].x_BND, u + 30 * (c - u))
    frozen = {k: x.clone() for k, x in trainer.model.earlier.items()}
    train(trainer, 2)
    assert all(torch.equal(x, frozen[k]) for k, x in trainer.model.earlier.items()), "training does not change them"
    assert not any("earlier" in name for name in trainer.model.state_dict())


@pytest.mark.slow
def test_after_the_stop_the_frozen_model_does_not_run(sit: Build, first: Any) -> None:
    trainer = sit(*SECOND, f"loss.guide={first.folder}", "schedule.stop_step=3")
    calls: list[bool] = []
    trainer.model.backbone.blocks[0].register_forward_hook(lambda module, *_: calls.append(module.training))
    for step, batches in enumerate(trainer.reader.stream(0, 5)):
        calls.clear()
        trainer.update(step, batches, with_tap_gradients=False)
        assert calls == ([False, False, True] if step < 3 else [True]), step
    assert "val/guided_distance" in trainer.validate(5), "validations still measure it"


@pytest.mark.slow
def test_weights_that_changed_since_the_run_began_and_those_of_another_backbone_are_refused(
    sit: Build, first: Any
) -> None:
    trainer = sit(*SECOND, f"loss.guide={first.folder}")
    record = trainer.folder / "guide.json"
    text = record.read_text()
    assert str(first.folder) in text
    record.write_text(text.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(UserError, match=r"began with other weights of loss\.guide"):
        earlier_weights(trainer.model, str(first.folder), trainer.folder, torch.device("cpu"))
    with pytest.raises(UserError, match="/no/such/run"):
        earlier_weights(trainer.model, "/no/such/run", trainer.folder, torch.device("cpu"))
    with pytest.raises(UserError, match=r"is of another backbone \(backbone\.blocks\.3"):
        sit(*SECOND, f"loss.guide={first.folder}", "backbone.depth=3")
