"""Losses and schedules as the protocols of `urepa.core.protocols` describe them, and λ over a run."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from urepa.config.parts import KINDS
from urepa.core.comparability import SILENT
from urepa.core.descriptions import Formula
from urepa.core.errors import UserError
from urepa.core.protocols import Loss, LossMath, Schedule
from urepa.method.losses.no_loss import NoLoss
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.schedules.constant import Constant
from urepa.method.schedules.cosine import Cosine
from urepa.method.step_schedules import linear_warmup

LOSSES: dict[str, Loss] = {
    "no_loss": NoLoss(),
    "urepa_loss": URepaLoss(
        lambda_max=0.5, warmup_steps=4, manifold_weight=3.0, level="both", taps={"mid": 1.0}, spike_threshold=0.1
    ),
}
SCHEDULES: dict[str, Schedule] = {"constant": Constant(), "cosine": Cosine(final=0.25)}


def changed(**settings: Any) -> URepaLoss:
    return URepaLoss(**vars(LOSSES["urepa_loss"]) | settings)


@pytest.mark.parametrize("name", LOSSES)
def test_a_declared_loss_is_what_the_protocol_says(name: str) -> None:
    """It answers as the mathematics that it builds, which a check before torch cannot ask."""
    own = LOSSES[name]
    own.check()
    own.check_teachers([])
    own.check_teachers(["a", "b"])
    own.check_layout(2, 1)
    own.check_length(1)
    assert all(metric.key.startswith("val/") for metric in own.metrics)
    assert all(isinstance(reason, str) for reason in own.idle_keys().values())
    mathematics: LossMath = own.build(schedule=SCHEDULES["cosine"], max_steps=20)
    for answer in ("taps", "lambda_max", "diffusion_fraction"):
        assert getattr(mathematics, answer) == getattr(own, answer)
    assert mathematics.aligned_steps == (math.inf if own.taps else 0)
    assert mathematics.time_power == 0
    assert mathematics.lam(4) == own.lambda_max
    assert mathematics.is_at_peak(4)
    words = own.description(schedule=SCHEDULES["constant"], max_steps=20)
    assert str(words[0]).startswith("The loss ")
    assert any(isinstance(block, Formula) for block in words)
    assert bool(own.model_card()) == bool(own.taps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_declared_schedule_is_what_the_protocol_says(name: str) -> None:
    own = SCHEDULES[name]
    factors = [own.factor(step, 50) for step in range(51)]
    assert factors[0] == 1
    assert all(0 <= factor <= 1 for factor in factors)
    assert own.factor(0, 1) == 1
    assert not own.description()[:1].isupper()  # it stands within a sentence
    assert not own.description().endswith(".")
    assert (own.description() == "") == (set(factors) == {1.0})


def test_every_file_declares_one_and_loads_without_torch() -> None:
    assert LOSSES.keys() == KINDS["loss"].keys()
    assert SCHEDULES.keys() == KINDS["schedule"].keys()
    code = "import sys; from urepa.config.parts import KINDS; assert KINDS['loss'] and KINDS['schedule']\n"
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True)


# --- λ over a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("stop", [None, 30])
def test_a_constant_schedule_is_the_warm_up_alone_to_the_bit(warmup: int, stop: int | None) -> None:
    loss = changed(lambda_max=0.3, warmup_steps=warmup, stop_step=stop)
    for step in range(60):
        by_hand = 0.0 if stop is not None and step >= stop else linear_warmup(step, 0.3, warmup)
        assert loss.lam(step, Constant(), 50) == by_hand


@pytest.mark.parametrize(
    ("step", "lam"),
    [
        (0, 0.0),
        (5, 0.25),  # half way up
        (10, 0.5),  # the warm-up's end
        (40, 0.5 * (0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)),  # a quarter of the way down: cos 45°
        (50, 0.5 * (0.2 + 0.8 * 0.75)),  # a third: cos 60°
        (70, 0.5 * 0.6),  # half: cos 90°
        (90, 0.5 * (0.2 + 0.8 * 0.25)),  # two thirds: cos 120°
        (130, 0.1),  # the end
        (200, 0.1),
    ],
)
def test_a_cosine_falls_from_the_warm_ups_end_to_the_runs(step: int, lam: float) -> None:
    loss = changed(lambda_max=0.5, warmup_steps=10)
    assert loss.lam(step, Cosine(final=0.2), 130) == pytest.approx(lam, abs=1e-12)
    stopped = changed(lambda_max=0.5, warmup_steps=10, stop_step=50)
    expected = 0.0 if step >= 50 else lam
    assert stopped.lam(step, Cosine(final=0.2), 130) == pytest.approx(expected, abs=1e-12)


def test_a_run_that_ends_in_its_warm_up_has_no_schedule() -> None:
    for warmup in (20, 30):
        loss = changed(lambda_max=0.5, warmup_steps=warmup)
        assert [loss.lam(step, Cosine(final=0.0), 20) for step in range(21)] == [
            linear_warmup(step, 0.5, warmup) for step in range(21)
        ]


def test_what_is_said_of_lambda_over_the_run() -> None:
    def sentence(schedule: Schedule, **settings: Any) -> str:
        words = changed(**settings).description(schedule=schedule, max_steps=20)
        return next(text for text in words if isinstance(text, str) and text.startswith("λ"))

    cosine = Cosine(final=0.25)
    falls = "falls along half a cosine to 0.25 of that at the last update"
    assert sentence(Constant()) == "λ rises linearly from 0 to 0.5 over the first 4 updates and stays there."
    assert sentence(cosine) == f"λ rises linearly from 0 to 0.5 over the first 4 updates and {falls}."
    assert sentence(Constant(), warmup_steps=0) == "λ = 0.5 from the first update on."
    assert sentence(cosine, warmup_steps=0) == f"λ = 0.5 at first and {falls}."
    assert sentence(cosine, warmup_steps=0, stop_step=9).endswith("last update until update 9, from which on it is 0.")
    assert sentence(cosine, warmup_steps=40).endswith("of which this run makes 20: it ends at λ = 0.2375.")
    assert sentence(cosine, lambda_max=0).startswith("λ = 0 throughout: the control")


def test_the_best_checkpoint_is_chosen_at_the_peak_under_a_falling_lambda(
    compose: Callable[..., dict[str, Any]], build_trainer: Callable[..., Any]
) -> None:
    """L_diff + λ_max·L_align from the warm-up's end on, as under a constant λ, whose total is the same to the bit."""
    by_schedule = {}
    for name in ("constant", "cosine"):
        trainer = build_trainer(f"schedule={name}", "loss.warmup_steps=2", "trainer.max_steps=8")
        rows = {step: trainer.validate(step) for step in (1, 2, 5, 8)}
        found = {}
        for step, row in rows.items():
            trainer.validate(step)
            total = trainer.validation.total_at_peak
            by_hand = row["val/diffusion"] + 0.5 * (row["val/token"] + 3.0 * row["val/manifold"])
            assert total == pytest.approx(by_hand, rel=1e-9)
            found[step] = total
            trainer.best = None
            assert trainer.is_best(step, total) == (step >= 2)
            assert (row["val/total"] == total) == ((name == "constant" and step >= 2) or step == 2)
        by_schedule[name] = found
    assert by_schedule["constant"] == by_schedule["cosine"]


def test_a_loss_of_another_package_may_have_a_field_without_a_default() -> None:
    """`taps` that is {} unless given has no value in its class."""
    from urepa.config.own_package import _check_declaration
    from urepa.core.declared_keys import setting

    @dataclass
    class Mine:
        _target_: str = "mine.Mine"
        taps: dict[str, float] = setting("taps", {}, ge=0)

    with pytest.raises(UserError) as error:
        _check_declaration(Mine, "loss", "mine.Mine")
    assert "mine.Mine is no loss, as it has no build and no check and " in str(error.value)
    assert "taps" not in str(error.value)
    with pytest.raises(
        UserError, match="mine.Mine is no schedule, as it has no check and no description and no factor; "
    ):
        _check_declaration(Mine, "schedule", "mine.Mine")


def test_kinds_that_may_be_silent_are_kinds() -> None:
    assert SILENT.keys() <= KINDS.keys()
