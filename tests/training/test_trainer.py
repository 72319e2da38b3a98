"""A run does not end as finished if its validation, weights or optimizer state are not finite, or if it skipped most of
its updates; its last good checkpoint stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from urepa.core.errors import UserError
from urepa.runs import checkpoint
from urepa.runs.metrics import read_rows

Build = Callable[..., Any]
SHORT = ("trainer.max_steps=6", "trainer.checkpoint_every=2", "trainer.validate_every=2")


def all_finite(found: checkpoint.Checkpoint) -> bool:
    parts = (found.tensors(part) for part in checkpoint.PARTS)
    return all(bool(tensor.isfinite().all()) for tensors in parts for tensor in tensors.values())


def of_part(trainer: Any, part: str) -> torch.Tensor:
    """One of the tensors of a checkpoint's part, as training has it."""
    name, parameter = next(iter(trainer.ema.parameters.items()))
    if part == "optimizer":
        state: torch.Tensor = trainer.optimizer.state[parameter]["exp_avg_sq"]
        return state
    return parameter.data if part == "weights" else trainer.ema.shadow[name]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["weights", "ema", "optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_states_are_not_saved(build_trainer: Build, part: str, value: float) -> None:
    trainer = build_trainer("trainer.max_steps=2")
    trainer.fit(0)
    good = checkpoint.newest(trainer.folder / "checkpoints")
    assert good is not None
    assert all_finite(good)
    of_part(trainer, part).view(-1)[-1] = value
    with pytest.raises(UserError, match=f"stopped at step 3: .* not finite .1, the first {part}/.*lower optimizer.lr"):
        trainer.save(3)
    still = checkpoint.newest(trainer.folder / "checkpoints")
    assert still == good


@pytest.mark.slow
@pytest.mark.parametrize("lr", ["inf", "1e30", "1e20"])
def test_a_learning_rate_that_destroys_the_weights_ends_the_run(build_trainer: Build, lr: str) -> None:
    """The command refuses such configs, but a stored one may contain them."""
    trainer = build_trainer(*SHORT, f"optimizer.lr.backbone={lr}", f"optimizer.lr.head={lr}")
    with pytest.raises(UserError, match="not finite"):
        trainer.fit(0)
    assert all(all_finite(checkpoint._open(path)) for _, path in checkpoint.steps(trainer.folder / "checkpoints"))


@pytest.mark.slow
def test_an_undefined_validation_ends_the_run_at_once(build_trainer: Build) -> None:
    """Its row is stored, and a resume continues from the checkpoint before it."""
    trainer = build_trainer(*SHORT, "trainer.ema_decay=0.0")
    validate = trainer.validate

    def after_damage(step: int) -> Any:
        if step == 4:
            next(iter(trainer.ema.shadow.values())).fill_(math.nan)
        return validate(step)

    trainer.validate = after_damage
    with pytest.raises(
        UserError, match=r"stopped at step 4: values of the validation are not finite \(\d+, the first "
    ):
        trainer.fit(0)
    assert [step for step, _ in checkpoint.steps(trainer.folder / "checkpoints")] == [2]
    rows = read_rows(trainer.metrics.path)
    assert (rows[-1]["step"], rows[-1]["val/total"]) == (4, "nan")
    trainer.restore(checkpoint.newest(trainer.folder / "checkpoints"), None)
    assert [row["step"] for row in read_rows(trainer.metrics.path)] == [1, 2]


@pytest.mark.slow
def test_a_run_that_skips_most_updates_is_not_finished(build_trainer: Build) -> None:
    """λ is 0 in the first update, after which an alignment term is infinite; weights and validation stay finite."""
    trainer = build_trainer(*SHORT, "loss.lambda_max=1e38", "loss.warmup_steps=1")
    with pytest.raises(UserError, match="5 of 6 updates .* skipped, so this run is not finished"):
        trainer.fit(0)
    found = checkpoint.newest(trainer.folder / "checkpoints")
    assert found is not None
    assert found.step == 6
    with pytest.raises(UserError, match="5 of 6 updates"):  # the same command says so again
        trainer.fit(trainer.restore(found, None))


@pytest.mark.slow
def test_a_non_finite_checkpoint_of_an_earlier_version_is_named(build_trainer: Build) -> None:
    trainer = build_trainer("trainer.max_steps=2")
    trainer.fit(0)
    tensors = trainer.tensors()
    first = next(iter(tensors["weights"]))
    tensors["weights"] = tensors["weights"] | {first: torch.full_like(tensors["weights"][first], math.nan)}
    state = {k: v for k, v in checkpoint.require(trainer.folder).state.items() if k not in ("step", "files")}
    checkpoint.save(trainer.folder / "checkpoints", 3, tensors, state, "")
    with pytest.raises(UserError, match=f"step_00000003 holds .* not finite .1, the first weights/{first}.; delete it"):
        trainer.restore(checkpoint.newest(trainer.folder / "checkpoints"), None)


@pytest.mark.slow
def test_an_alignment_that_does_not_improve_is_remarked_once(
    build_trainer: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = build_trainer("optimizer.lr.head=3e-4")
    for step, cosine in ((1, 0.10), (400, 0.115), (499, 0.11), (520, 0.118)):
        trainer.metrics.append({"step": step, "train/cosine": cosine})
        trainer.judge_alignment(step)
    trainer.metrics.append({"step": 540, "train/cosine": 0.118})
    trainer.judge_alignment(540)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 520: the cosine of projected and teacher tokens rose by 0.018 in 500 updates")
    assert "loss.taps: mid" in line
    assert "optimizer.lr.head=0.0003 at this step" in line
    resumed = build_trainer()
    resumed.metrics = trainer.metrics
    resumed.metrics.append({"step": 560, "train/cosine": 0.118})
    resumed.judge_alignment(560)
    assert capsys.readouterr().out == ""


@pytest.mark.fast(1)
@pytest.mark.parametrize(("override", "last"), [("loss.lambda_max=0", 0.1), ("loss.lambda_max=0.5", 0.13)])
def test_other_runs_are_not_remarked(
    build_trainer: Build, capsys: pytest.CaptureFixture[str], override: str, last: float
) -> None:
    trainer = build_trainer(override)
    for step, cosine in ((1, 0.1), (500, last)):
        trainer.metrics.append({"step": step, "train/cosine": cosine})
    trainer.judge_alignment(500)
    assert capsys.readouterr().out == ""


def test_a_run_that_ended_early_with_most_updates_skipped_does_not_finish_later(
    build_trainer: Callable[..., Any],
) -> None:
    trainer = build_trainer("stop_when=plateau", "stop_when.patience=1", "trainer.max_steps=9")
    for step, value in ((2, 1.0), (4, 2.0)):
        trainer.metrics.append({"step": step, "val/diffusion": value})
    assert trainer.fit(4) == 4
    trainer.guard.skipped.fill_(3)
    with pytest.raises(UserError, match="3 of 4 updates"):
        trainer.fit(4)
