"""Evaluations during training: they do not change the training, and they keep to their time budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from urepa.evaluation.context import Evaluated
from urepa.evaluation.in_training import During
from urepa.reports.comparison.by_clock import clock_of
from urepa.reports.comparison.metric_columns import RATE
from urepa.reports.comparison.read_runs import Run
from urepa.runs import checkpoint
from urepa.runs.curves import read_curves
from urepa.runs.metrics import TIMINGS, read_rows

Build = Callable[..., Any]
STEPS = ("trainer.max_steps=6", "trainer.log_every=1", "trainer.validate_every=4", "trainer.checkpoint_every=2")
SMALL = (
    "evaluation=cifar10",
    "evaluation.samples.per_class=1",
    "evaluation.samples.sampler_steps=2",
    "evaluation.probe.train_images=20",
)


def rows_of(trainer: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_rows(trainer.metrics.path)]


def trained(trainer: Any) -> Any:
    trainer.fit(0)
    return trainer


@pytest.mark.slow
def test_training_is_unchanged_by_evaluations(build_trainer: Build) -> None:
    plain = trained(build_trainer(*STEPS))
    parameters = {n: p.detach().clone() for n, p in plain.model.named_parameters()}
    rows, shadow = rows_of(plain), plain.ema.shadow
    often = trained(build_trainer(*STEPS, *SMALL, "trainer.evaluate_every=2", "trainer.evaluation_share=1000"))
    assert all(torch.equal(p, parameters[n]) for n, p in often.model.named_parameters())
    assert all(torch.equal(value, shadow[n]) for n, value in often.ema.shadow.items())
    theirs = rows_of(often)
    assert [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in theirs] == rows
    asked = {"step", "eval/tap_knn", "eval/tap_linear_probe", "eval/pixel_knn", "eval/teacher_knn"}
    found = [{k: v for k, v in row.items() if k in asked} for row in theirs if "eval/tap_knn" in row]
    assert [row["step"] for row in found] == [2, 4], "the last step's comes after training"
    assert all(row.keys() == asked for row in found)
    assert sorted(p.name for p in (often.folder / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]


@pytest.mark.slow
def test_the_values_are_those_of_an_evaluation_of_that_checkpoint(build_trainer: Build, tmp_path: Path) -> None:
    first = trained(build_trainer(*STEPS, *SMALL, "trainer.evaluate_every=4", "trainer.evaluation_share=1000"))
    (row,) = [row for row in rows_of(first) if "eval/tap_knn" in row]
    again = build_trainer(*STEPS, *SMALL)
    found = checkpoint.Checkpoint(first.folder / "checkpoints" / "step_00000004", 4, {})
    checkpoint.load_named(again.ema.shadow, found.tensors("ema"), "")
    metrics = again.during.evaluate(4).metrics
    assert {f"final/{k.removeprefix('eval/')}": v for k, v in row.items() if k.startswith("eval/")} == metrics


@pytest.mark.slow
def test_the_time_of_evaluations_is_not_counted_as_training(build_trainer: Build) -> None:
    trainer = build_trainer(*STEPS, *SMALL, "trainer.evaluate_every=2", "trainer.evaluation_share=1000")
    spent = 1000.0  # of seconds, as far as the trainer's clock says

    def slow(step: int) -> Evaluated:
        import time

        real = time.perf_counter
        time.perf_counter = lambda: real() + spent * (step // 2)  # type: ignore[assignment]
        return Evaluated({}, {})

    import time

    clock = time.perf_counter
    try:
        trainer.during.evaluate = slow
        trained(trainer)
    finally:
        time.perf_counter = clock
    assert trainer.seconds < spent < trainer.during.seconds
    curves, _ = read_curves(read_rows(trainer.metrics.path), lambda key: key in (RATE, "train/total"))
    run = Run("id", "name", {"trainer.batch_size": str(trainer.settings.batch_size)}, {}, "finished", {}, curves)
    clock = clock_of(run)  # what a comparison makes of the rows
    assert clock is not None
    assert clock.values[-1] == pytest.approx(trainer.seconds, rel=1e-9)


@pytest.mark.parametrize(
    ("share", "costs", "turns"),
    [
        (0.1, 0.0, [1, 2, 3, 4]),
        (0.1, 14.0, [1, 3]),  # two are 28 s, less than a tenth of 300 s alone; three are 42 s, more than that of 400 s
        (0.1, 25.0, [1]),  # a second of 25 s would make it 50 s of 40
        (0.1, 1000.0, [1]),  # nobody knew
        (1000.0, 25.0, [1, 2, 3, 4]),
        (0.0, 0.0, []),
    ],
)
def test_the_budget(share: float, costs: float, turns: list[int]) -> None:
    """A hundred seconds of training before each evaluation."""
    done: list[int] = []

    def evaluate(step: int) -> Evaluated:
        done.append(step)
        return Evaluated({"final/value": float(step)}, {"probe": "no such tap"})

    during = During(evaluate, every=1, share=share)
    for step in (1, 2, 3, 4):
        row = during.row(step, 100.0 * step, is_main=True)
        assert row == ({"eval/value": step} if done[-1:] == [step] else {})
        during.seconds, during.last = costs * len(done), costs * bool(done)
    assert done == turns
    assert not During(evaluate, 2, 1.0).is_due(3, 10)
    assert During(evaluate, 2, 1.0).is_due(4, 10)
    assert not During(evaluate, 2, 1.0).is_due(10, 10)
    assert not During(evaluate, None, 1.0).is_due(4, 10)


def test_only_rank_0_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    during = During(lambda step: Evaluated({"final/value": 1.0}, {"knn": "no teacher"}), 1, 1.0)
    assert during.row(5, 1.0, is_main=False) == {}
    assert capsys.readouterr().out == ""
    assert during.row(5, 1.0, is_main=True) == {"eval/value": 1.0}
    assert "step 5: evaluation.knn: no teacher" in capsys.readouterr().out


@pytest.mark.slow
def test_time_spent_survives_a_resume(build_trainer: Build) -> None:
    first = trained(build_trainer(*STEPS, *SMALL, "trainer.evaluate_every=2", "trainer.evaluation_share=1000"))
    assert first.during.seconds > 0
    again = build_trainer(*STEPS)
    again.restore(checkpoint.newest(first.folder / "checkpoints"), None)
    assert again.during.seconds == first.during.seconds
    assert again.during.last == first.during.last > 0
