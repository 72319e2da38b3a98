"""Losses, compared with the protocol of `urepa.core.protocols`, and their descriptions of λ over a run."""

from __future__ import annotations

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
from urepa.method.attention_maps import attention_of
from urepa.method.losses.dispersive import Dispersive
from urepa.method.losses.haste import Haste
from urepa.method.losses.latent_structure import LatentStructure
from urepa.method.losses.layer_sync import LayerSync
from urepa.method.losses.no_loss import NoLoss
from urepa.method.losses.reg import Reg
from urepa.method.losses.released import Released
from urepa.method.losses.self_flow import SelfFlow
from urepa.method.losses.self_representation import SelfRepresentation
from urepa.method.losses.self_transcendence import SelfTranscendence
from urepa.method.losses.several_terms import SeveralTerms
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.schedules.constant import Constant
from urepa.method.schedules.cosine import Cosine
from urepa.method.self_alignment import has_alignment, own_states
from urepa.method.terms.sample_relations import SampleRelations
from urepa.method.terms.squared_distance import SquaredDistance

LOSSES: dict[str, Loss] = {
    "no_loss": NoLoss(),
    "urepa_loss": URepaLoss(
        lambda_max=0.5, warmup_steps=4, manifold_weight=3.0, level="both", taps={"mid": 1.0}, spike_threshold=0.1
    ),
    "layer_sync": LayerSync(lambda_max=0.2, warmup_steps=4, student="block_1", teacher="block_3"),
    "dispersive": Dispersive(lambda_max=0.5, warmup_steps=4, tap="block_1", temperature=0.5),
    "self_representation": SelfRepresentation(
        lambda_max=0.2, warmup_steps=4, student="block_1", teacher="block_3", less_noise=0.2, beta=0.05
    ),
    "self_flow": SelfFlow(lambda_max=0.8, warmup_steps=4, student="block_1", teacher="block_3", share=0.25),
    "released": Released(
        **{"lambda_max": 0.5, "warmup_steps": 4, "manifold_weight": 0.0, "level": "token", "taps": {"block_1": 1.0}},
        spike_threshold=0.1,
        release_cosine=0.5,
        time_power_end=None,
    ),
    "latent_structure": LatentStructure(
        lambda_max=0.5, warmup_steps=4, student="block_1", target="x0", times=[0.4, 0.7], hidden=8
    ),
    "self_transcendence": SelfTranscendence(
        **{
            "lambda_max": 0.5,
            "warmup_steps": 4,
            "student": "block_1",
            "teacher": "block_3",
            "guide": "outputs/a/seed0",
        },
        guidance=30.0,
        times=[0.4, 0.7],
        hidden=8,
    ),
    "haste": Haste(
        **{"lambda_max": 0.5, "warmup_steps": 4, "manifold_weight": 0.0, "level": "token", "taps": {"block_1": 1.0}},
        spike_threshold=0.1,
        attention={"block_0": 10, "block_1": 11},
    ),
    "reg": Reg(
        **{"lambda_max": 0.5, "warmup_steps": 4, "manifold_weight": 0.0, "level": "token", "taps": {"block_1": 1.0}},
        spike_threshold=0.1,
        class_weight=0.03,
    ),
    "several_terms": SeveralTerms(
        **{"lambda_max": 0.5, "warmup_steps": 4, "manifold_weight": 3.0, "level": "both", "taps": {"mid": 1.0}},
        spike_threshold=0.1,
        terms={"mse": SquaredDistance(), "pairs": SampleRelations(centred=True)},
    ),
}
SCHEDULES: dict[str, Schedule] = {"constant": Constant(), "cosine": Cosine(final=0.25)}


def changed(**settings: Any) -> URepaLoss:
    return URepaLoss(**vars(LOSSES["urepa_loss"]) | settings)


@pytest.mark.parametrize("name", LOSSES)
def test_a_declared_loss_is_what_the_protocol_says(name: str) -> None:
    """A declaration agrees with the mathematics that it builds, which checks before torch cannot use."""
    own = LOSSES[name]
    own.check()
    own.check_teachers([])
    if not attention_of(own) and not isinstance(own, Reg):
        own.check_teachers(["a", "b"])
    own.check_layout(2, 1)
    own.check_schedule(SCHEDULES["constant"], 1)
    assert all(metric.key.startswith("val/") for metric in own.metrics)
    assert all(isinstance(reason, str) for reason in own.idle_keys().values())
    mathematics: LossMath = own.build(schedule=SCHEDULES["cosine"], max_steps=20)
    for answer in ("taps", "lambda_max", "diffusion_fraction"):
        assert getattr(mathematics, answer) == getattr(own, answer)
    assert mathematics.schedule.asks_teacher(4) == has_alignment(own)
    assert own_states(mathematics) == own_states(own)
    assert attention_of(mathematics) == attention_of(own)
    assert mathematics.time_power == 0
    assert mathematics.lam(4) == own.lambda_max
    assert mathematics.is_at_peak(4)
    words = own.description(schedule=SCHEDULES["constant"], max_steps=20)
    assert str(words[0]).startswith("The loss ")
    assert any(isinstance(block, Formula) for block in words)
    assert bool(own.model_card()) == has_alignment(own)


@pytest.mark.slow
def test_every_file_declares_one_and_loads_without_torch() -> None:
    assert LOSSES.keys() == KINDS["loss"].keys()
    code = "import sys; from urepa.config.parts import KINDS; assert KINDS['loss'] and KINDS['schedule']\n"
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True)


def test_the_description_of_lambda_over_the_run() -> None:
    def sentence(schedule: Schedule, **settings: Any) -> str:
        words = changed(**settings).description(schedule=schedule, max_steps=20)
        return next(text for text in words if isinstance(text, str) and text.startswith("λ"))

    cosine = Cosine(final=0.25)
    falls = "falls along half a cosine to 0.25 of that at the last update"
    assert sentence(Constant()) == "λ rises linearly from 0 to 0.5 over the first 4 updates and stays there."
    assert sentence(cosine) == f"λ rises linearly from 0 to 0.5 over the first 4 updates and {falls}."
    assert sentence(Constant(), warmup_steps=0) == "λ = 0.5 from the first update on."
    assert sentence(cosine, warmup_steps=0) == f"λ = 0.5 at first and {falls}."
    stopped = Cosine(final=0.25, stop_step=9)
    assert sentence(stopped, warmup_steps=0).endswith("last update until update 9, from which on it is 0.")
    assert sentence(Constant(stop_step=9)).endswith("updates and stays there until update 9, from which on it is 0.")
    soon = Cosine(final=0.0, decay_steps=12)
    assert sentence(soon).endswith("falls along half a cosine to 0 at update 12, where it stays.")
    assert sentence(cosine, warmup_steps=40).endswith("of which this run makes 20: it ends at λ = 0.2375.")
    assert sentence(cosine, lambda_max=0).startswith("λ = 0 throughout: the control")


@pytest.mark.slow
def test_the_best_checkpoint_is_chosen_at_the_peak_under_a_falling_lambda(
    compose: Callable[..., dict[str, Any]], build_trainer: Callable[..., Any]
) -> None:
    """L_diff + λ_max·L_align from the warm-up's end on, as under a constant λ, whose total is the same bit for bit."""
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
    """For example `taps` with a default factory, which has no value in the class."""
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
    with pytest.raises(UserError, match="mine.Mine is no schedule, as it has no build and no check and "):
        _check_declaration(Mine, "schedule", "mine.Mine")


def test_every_key_of_silent_is_a_kind() -> None:
    assert SILENT.keys() <= KINDS.keys()
