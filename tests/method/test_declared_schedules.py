"""Schedules of λ: their formulas at every step, and the decisions of a cut-off by measured similarities."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from urepa.config.parts import KINDS
from urepa.core.errors import UserError
from urepa.core.protocols import Schedule, ScheduleMath
from urepa.data.reader import AHEAD, Layout, TrainingReader
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.schedules.constant import Constant
from urepa.method.schedules.cosine import Cosine
from urepa.method.schedules.gradient_conflict import GradientConflict
from urepa.method.schedules.linear import Linear
from urepa.method.schedules.polynomial import Polynomial
from urepa.method.schedules.similarity_cutoff import SimilarityCutoff
from urepa.method.step_schedules import linear_warmup

SCHEDULES: dict[str, Schedule] = {
    "constant": Constant(),
    "cosine": Cosine(final=0.25),
    "linear": Linear(final=0.25),
    "polynomial": Polynomial(final=0.25, power=3.0),
    "similarity_cutoff": SimilarityCutoff(threshold=0.5, ema_decay=0.9, recoverable=False, shape=Cosine(final=0.25)),
    "gradient_conflict": GradientConflict(threshold=0.0, ema_decay=0.9, every=2, least=3, shape=Cosine(final=0.25)),
}
DELAY = SimilarityCutoff.delay


def loss(schedule: Schedule, max_steps: int, **settings: Any) -> Any:
    """The mathematics of a loss with this schedule."""
    own = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 0.0, "level": "token", "spike_threshold": 1.0}
    return URepaLoss(taps={"mid": 1.0}, **own | settings).build(schedule=schedule, max_steps=max_steps)


@pytest.mark.parametrize("name", KINDS["schedule"])
def test_a_declared_schedule_is_what_the_protocol_says(name: str) -> None:
    own = SCHEDULES[name]
    own.check()
    own.check_length(warmup_steps=3, max_steps=50)
    shares = [own.share(step, warmup_steps=3, max_steps=50) for step in range(51)]
    assert shares[:4] == [1] * 4
    assert all(0 <= share <= 1 for share in shares)
    assert own.share(0, warmup_steps=0, max_steps=1) == 1
    assert not own.description()[:1].isupper()  # it stands within a sentence
    assert not own.description().endswith(".")
    assert (
        (own.description() == "") == (name == "constant") == (own.formulas(peak=1, warmup_steps=3, max_steps=50) == [])
    )
    built: ScheduleMath = own.build(warmup_steps=3, max_steps=50)
    assert (built.value(0), built.asks_teacher(0), built.is_stopped(0)) == (1, True, False)
    assert own.teacher_steps(warmup_steps=3, max_steps=50) == math.inf
    assert own.may_stop(warmup_steps=3, max_steps=50) == (name in ("similarity_cutoff", "gradient_conflict"))


# --- what is known before the run -----------------------------------------------------------------------------

PEAK = 0.3


def by_hand(name: str, step: int, warmup: int, last: int, end: float) -> float:
    """λ by its formula, where the decay ends at the value `end` instead of a share of the peak."""
    if step < warmup:
        return PEAK * step / warmup
    p = min((step - warmup) / max(last - warmup, 1), 1)
    return {
        "constant": lambda: PEAK,
        "linear": lambda: PEAK + (end - PEAK) * p,
        "cosine": lambda: end + (PEAK - end) * (1 + math.cos(math.pi * p)) / 2,
        "polynomial": lambda: (PEAK - end) * (1 - p) ** 1.5 + end,
    }[name]()


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize(("decay", "final"), [(None, 0.0), (None, 0.2), (43, 0.2), (43, 0.0), (90, 0.2)])
@pytest.mark.parametrize("stop", [None, 30])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "polynomial"])
def test_lambda_is_the_formula_at_every_step(
    name: str, warmup: int, decay: int | None, final: float, stop: int | None
) -> None:
    decays = {} if name == "constant" else {"final": final, "decay_steps": decay}
    powers = {"power": 1.5} if name == "polynomial" else {}
    schedule = KINDS["schedule"][name](stop_step=stop, **decays, **powers)
    own = loss(schedule, 60, lambda_max=PEAK, warmup_steps=warmup)
    last = 60 if decay is None else decay
    for step in range(80):
        stopped = stop is not None and step >= stop
        expected = 0.0 if stopped else by_hand(name, step, warmup, last, final * PEAK)
        assert own.lam(step) == pytest.approx(expected, abs=1e-15)
        ended = name != "constant" and final == 0 and step >= last
        assert own.schedule.asks_teacher(step) == (not stopped and not ended)
        if stopped or ended:
            assert own.lam(step) == 0
    assert own.is_at_peak(29) == (warmup <= 29)
    assert own.is_at_peak(59) == (stop is None)


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
def test_constant_and_cosine_equal_the_earlier_version_bit_for_bit(warmup: int) -> None:
    """Constant and cosine schedules, computed as in the version before decays had their own ends."""
    for step in range(60):
        since, of = max(0, step - warmup), max(1, 50 - warmup)
        cosine = 0.2 if since >= of else 0.2 + (1.0 - 0.2) * 0.5 * (1.0 + math.cos(math.pi * since / of))
        for schedule, factor in ((Constant(), 1.0), (Cosine(final=0.2), cosine)):
            assert loss(schedule, 50, lambda_max=0.3, warmup_steps=warmup).lam(step) == (
                linear_warmup(step, 0.3, warmup) * factor
            )


def test_a_run_that_ends_in_its_warm_up_has_no_schedule() -> None:
    for warmup in (20, 30):
        own = loss(Cosine(final=0.0), 20, warmup_steps=warmup)
        assert [own.lam(step) for step in range(21)] == [linear_warmup(step, 0.5, warmup) for step in range(21)]


def test_settings_without_an_effect_are_refused() -> None:
    for schedule, text in (
        (Constant(stop_step=50), r"schedule\.stop_step=50 has no effect in a run of 50 steps"),
        (Linear(final=0.0, decay_steps=10), r"schedule\.decay_steps=10 is counted from the run's first update"),
        (cutoff(stop_step=50), r"schedule\.stop_step=50 has no effect"),
        (cutoff(shape=Constant(stop_step=5)), r"give schedule\.stop_step instead"),
        (cutoff(shape=cutoff()), r"schedule\.shape: a cut-off inside a cut-off"),
        (cutoff(shape=Linear(final=0.0, decay_steps=10)), r"schedule\.decay_steps=10 is counted"),
    ):
        with pytest.raises(UserError, match=text):
            loss(schedule, 50, warmup_steps=10)
    with pytest.raises(UserError, match="a measurement takes effect 8 updates later"):
        loss(cutoff(), DELAY)
    for schedule in (Constant(stop_step=20), Linear(final=0.0, decay_steps=20), cutoff()):
        with pytest.raises(UserError, match=r"give loss\.diffusion_fraction=1 with it"):
            loss(schedule, 50, diffusion_fraction=0.5)
    for schedule in (Constant(), Linear(final=0.0), Linear(final=0.1, decay_steps=20), cutoff(recoverable=True)):
        loss(schedule, 50, diffusion_fraction=0.5)


# --- a cut-off by similarity ----------------------------------------------------------------------------------


def cutoff(**changes: Any) -> SimilarityCutoff:
    own = {"threshold": 0.5, "ema_decay": 0.7, "recoverable": False, "shape": Constant()}
    return SimilarityCutoff(**own | changes)


def averages(similarities: list[float | None], decay: float) -> list[float | None]:
    """m after each update, from the formula: m_0 is the first value, m_s = d·m_(s-1) + (1 - d)·x_s."""
    found: list[float | None] = []
    for x in similarities:
        m = found[-1] if found else None
        found.append(m if x is None or math.isnan(x) else x if m is None else decay * m + (1 - decay) * x)
    return found


def drive(
    schedule: ScheduleMath, similarities: list[float], first: int = 0, last: int | None = None, ahead: int = AHEAD
) -> list[tuple[float, bool]]:
    """λ's share and whether tokens are read, for the updates from `first` on, as a trainer and its reader query the
    schedule: tokens are requested `ahead` updates in advance, and an update without tokens measures nothing."""
    last = len(similarities) if last is None else last
    asked = {step: schedule.asks_teacher(step) for step in range(first, min(first + ahead, last))}
    found = []
    for step in range(first, last):
        if step + ahead < last:
            asked[step + ahead] = schedule.asks_teacher(step + ahead)
        assert asked[step] == schedule.asks_teacher(step)
        found.append((schedule.value(step), asked[step]))
        schedule.observe(step, torch.tensor(similarities[step], dtype=torch.float64) if asked[step] else None)
    return found


@pytest.mark.parametrize("recoverable", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_cutoff_takes_effect_after_the_documented_delay(recoverable: bool, seed: int) -> None:
    rng = random.Random(seed)
    similarities = [0.5 + 0.3 * math.sin(step / 9) + rng.gauss(0, 0.1) for step in range(120)]
    similarities[17] = math.nan  # a skipped update
    built = cutoff(recoverable=recoverable, shape=Linear(final=0.5)).build(warmup_steps=0, max_steps=120)
    found = drive(built, similarities)
    above = [m is not None and m >= 0.5 for m in averages(similarities, 0.7)]
    assert sum(a != b for a, b in pairwise(above)) >= 2, "it crosses the threshold both ways"
    for step, (share, asked) in enumerate(found):
        seen = above[: max(0, step - DELAY + 1)]
        closed = bool(seen) and (seen[-1] if recoverable else any(seen))
        assert (share == 0) == closed, step
        if not closed:
            assert share == Linear(final=0.5).share(step, warmup_steps=0, max_steps=120)
        assert asked == (recoverable or not closed)


def test_one_update_above_the_threshold_ends_the_alignment_permanently() -> None:
    """Later measurements, made before the cut-off takes effect, do not undo it."""
    similarities = [0.1] * 5 + [0.9] + [0.1] * 30
    first = 5 + DELAY
    for recoverable, after in ((False, (0.0, False)), (True, (1.0, True))):
        built = cutoff(recoverable=recoverable, ema_decay=0.0).build(warmup_steps=0, max_steps=36)
        found = drive(built, similarities)
        assert found[:first] == [(1.0, True)] * first
        assert found[first] == (0.0, recoverable)
        assert found[first + 1 :] == [after] * (36 - first - 1)


def test_the_logged_average_includes_all_measurements() -> None:
    similarities = [0.1, 0.4, 0.2, 0.9, 0.3, 0.6, 0.1, 0.2, 0.5, 0.7, 0.4]
    built = cutoff(recoverable=True).build(warmup_steps=0, max_steps=100)
    for step, similarity in enumerate(similarities):
        assert built.asks_teacher(step + AHEAD)
        built.observe(step, torch.tensor(similarity, dtype=torch.float64))
        assert built.logged()["similarity_ema"] == averages(similarities[: step + 1], 0.7)[-1]
    assert cutoff().build(warmup_steps=0, max_steps=100).logged() == {}


@pytest.mark.parametrize("recoverable", [False, True])
@pytest.mark.parametrize("at", [1, 3, DELAY, DELAY + 1, 40, 90])
def test_its_state_is_the_same_after_a_resume(recoverable: bool, at: int) -> None:
    similarities = [0.5 + 0.3 * math.sin(step / 9) for step in range(100)]
    declared = cutoff(recoverable=recoverable)
    whole = declared.build(warmup_steps=0, max_steps=100)
    expected = drive(whole, similarities)
    before = declared.build(warmup_steps=0, max_steps=100)
    assert drive(before, similarities, 0, at) == expected[:at]
    state = json.loads(json.dumps(before.state(at)))
    assert len(state["measured"]) <= DELAY
    after = declared.build(warmup_steps=0, max_steps=100)
    after.load(at, state)
    assert after.state(at) == state
    assert drive(after, similarities, at) == expected[at:]
    assert after.state(100) == whole.state(100)


def test_the_shape_and_stop_step_end_the_alignment_too() -> None:
    low = [0.0] * 40
    stopped = cutoff(stop_step=20).build(warmup_steps=0, max_steps=40)
    assert drive(stopped, low) == [(1.0, True)] * 20 + [(0.0, False)] * 20
    assert (stopped.is_stopped(19), stopped.is_stopped(20)) == (False, True)
    ended = cutoff(recoverable=True, shape=Linear(final=0.0, decay_steps=25)).build(warmup_steps=0, max_steps=40)
    assert [asked for _, asked in drive(ended, low)] == [True] * 25 + [False] * 15


def test_a_decision_before_its_measurement_fails() -> None:
    built = cutoff().build(warmup_steps=0, max_steps=100)
    assert built.value(DELAY - 1) == 1
    with pytest.raises(AssertionError, match="update 8 depends on what update 0 measures"):
        built.value(DELAY)


def test_a_delay_shorter_than_the_read_ahead_fails(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(delay: int) -> TrainingReader:
        monkeypatch.setattr(SimilarityCutoff, "delay", delay)
        return TrainingReader(cache, None, Layout(8), 0, 1.0, cutoff().build(warmup_steps=0, max_steps=100))

    reader(AHEAD + 1)
    with pytest.raises(AssertionError, match="the schedule must act later than the reader reads ahead"):
        reader(AHEAD)


@pytest.mark.slow
def test_the_measurement_is_the_logged_cosine_and_no_token_is_read_after_a_cutoff(
    build_trainer: Callable[..., Any],
) -> None:
    """A trainer's own updates: the first similarity is above the threshold, so λ is 0 from update 8 on."""
    trainer = build_trainer(*CLOSES, "trainer.max_steps=16")
    read, tokens = [], trainer.reader.cache.tokens[""]
    own = tokens.tensor
    tokens.tensor = lambda keys, raw=None: read.append(len(keys)) or own(keys, raw)
    rows = []
    for step, batches in enumerate(trainer.reader.stream(0, 16)):
        assert bool(batches[0].teachers) == (step < DELAY)
        rows.append(trainer.log(step + 1, trainer.update(step, batches, with_tap_gradients=False)))
    assert len(read) == DELAY * trainer.settings.accumulation
    cosines = [row.get("train/cosine") for row in rows]
    for row, expected in zip(rows, averages(cosines, 0.9), strict=True):
        assert row["train/similarity_ema"] == pytest.approx(expected, rel=1e-6)
    assert [row["train/lambda"] > 0 for row in rows] == [True] * DELAY + [False] * 8
    assert "train/token" not in rows[-1]
    assert trainer.is_best(16, 1.0), "any λ counts"


CLOSES = (
    "schedule=similarity_cutoff",
    "schedule.threshold=-1",
    "schedule.ema_decay=0.9",
    "loss.warmup_steps=0",
)


@pytest.mark.slow
def test_at_a_lambda_of_0_the_tokens_are_measured_and_the_head_is_in_the_graph(
    build_trainer: Callable[..., Any],
) -> None:
    """As with loss.lambda_max=0: gradients are 0 and not None, which DDP requires."""
    trainer = build_trainer(*CLOSES, "schedule.recoverable=true", "trainer.max_steps=16")
    for step in range(DELAY):
        trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)
    (batch,) = trainer.reader.read(DELAY)
    terms, _ = trainer.forward(batch, DELAY)
    assert trainer.loss.lam(DELAY) == 0
    assert terms.per_sample["token"].mean() > 0
    torch.testing.assert_close(terms.total, terms.per_sample["diffusion"].mean())
    terms.total.backward()
    heads = dict(trainer.model.heads.named_parameters())
    assert heads
    assert all(p.grad is not None and not p.grad.any() for p in heads.values())
