"""A part of the batch goes through the decoder: the estimate is unbiased, draws are paired with those of the whole
batch, and a fraction of 0 skips it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import ids_of, of_ids
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.types import Batch, Tokens, no_rows
from urepa.data.class_conditions import ClassConditions
from urepa.data.reader import Layout, TrainingReader
from urepa.method.diffusion_fraction import strata
from urepa.method.heads.conv_net import ConvHead
from urepa.method.losses.no_loss import NoLoss
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.losses.urepa_loss_math import AlignmentLoss
from urepa.method.objectives.ddpm_math import VelocityMath
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import AlignedModel, Terms, step_terms, tap_gradients
from urepa.models.backbones.unet_net import tiny_unet
from urepa.training.checks.combinations import check_fraction

OBJECTIVE = VelocityMath(0.00085, 0.012, "linear", 1000)
TAPS = ("enc_last", "mid", "dec_first")


def alone(x: Tensor) -> Tensor:
    return x


def loss_with(fraction: float, taps: tuple[str, ...] = ("mid",)) -> AlignmentLoss:
    settings = URepaLoss(
        lambda_max=0.5,
        warmup_steps=0,
        manifold_weight=3.0,
        level="sample",
        taps=dict.fromkeys(taps, 1.0),
        spike_threshold=0.1,
        diffusion_fraction=fraction,
    )
    return settings.build(schedule=Constant(), max_steps=100)


def model_with(taps: tuple[str, ...]) -> AlignedModel:
    torch.manual_seed(0)
    backbone = tiny_unet(
        [32, 64], [False, True], 1, cross_attention_dim=32, head_dim=32, latent_shape=(4, 8, 8), num_classes=3
    )
    return AlignedModel(backbone, {tap: ConvHead(2, "after", in_width=64, out_width=5) for tap in taps})


@pytest.fixture(scope="module")
def batch() -> Batch:
    torch.manual_seed(1)
    return Batch(
        ids=list("abcd"),
        x0=torch.randn(4, 4, 8, 8),
        noise=torch.randn(4, 4, 8, 8),
        t_B=torch.tensor([10, 300, 600, 999]),
        condition=of_ids(torch.tensor([0, 1, 2, 3]), 3),
        teachers={"": Tokens(F.normalize(torch.randn(4, 6, 5), dim=-1), (2, 3))},
    )


def gradients(model: AlignedModel, value: Tensor) -> dict[str, Tensor | None]:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(value, list(named.values()), allow_unused=True), strict=True))


# --- the backbone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [("mid",), TAPS])
def test_rows_have_the_predictions_they_have_in_the_whole_batch(batch: Batch, taps: tuple[str, ...]) -> None:
    backbone = model_with(()).backbone
    whole = backbone(batch.noise, batch.t_B, batch.condition, taps)
    some = backbone(batch.noise, batch.t_B, batch.condition, taps, torch.tensor([3, 1]))
    torch.testing.assert_close(some.prediction_RCHW, whole.prediction_RCHW[[3, 1]], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(some.features[tap].x_BND, whole.features[tap].x_BND) for tap in taps)


def modules_run(backbone: Any, taps: tuple[str, ...], batch: Batch) -> set[str]:
    """The U-Net's parts that a forward pass without rows enters."""
    seen: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: seen.add(name))
        for name, module in backbone.unet.named_modules()
        if name in ("conv_in", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out")
    ]
    denoised = backbone(batch.noise, batch.t_B, batch.condition, taps, no_rows(batch.noise.device))
    assert denoised.prediction_RCHW.shape == (0, 4, 8, 8)
    assert set(denoised.features) == set(taps)
    for handle in handles:
        handle.remove()
    return seen


def test_without_rows_the_forward_stops_after_the_deepest_tap(batch: Batch) -> None:
    backbone = model_with(()).backbone
    encoder = {"conv_in", "down_blocks.1"}
    assert modules_run(backbone, ("enc_last",), batch) == encoder
    assert modules_run(backbone, ("mid",), batch) == encoder | {"mid_block"}
    assert modules_run(backbone, ("enc_last", "dec_first"), batch) == encoder | {"mid_block", "up_blocks.0"}


@pytest.mark.parametrize("taps", [("mid",), ("enc_last",), TAPS])
def test_stopping_early_gives_the_whole_forwards_alignment_gradients_bit_for_bit(
    batch: Batch, taps: tuple[str, ...]
) -> None:
    model = model_with(taps)
    full = step_terms(model, OBJECTIVE, loss_with(1.0, taps), batch, 5, alone)[0]
    assert full.alignment is not None
    stopped = step_terms(
        model, OBJECTIVE, loss_with(0.0, taps), replace(batch, rows_R=no_rows(torch.device("cpu"))), 5, alone
    )[0]
    ours, reference = gradients(model, stopped.total), gradients(model, 0.5 * full.alignment)
    reached = {name for name, g in reference.items() if g is not None and bool(g.abs().max() > 0)}
    assert reached == {name for name, g in ours.items() if g is not None and bool(g.abs().max() > 0)}
    assert all(torch.equal(ours[name], reference[name]) for name in reached)  # type: ignore[arg-type]


# --- the loss -----------------------------------------------------------------------------------------------


def test_the_estimate_is_unbiased_and_all_tokens_are_aligned(batch: Batch) -> None:
    """Over all ways to take 1 of 2 neighbours twice, the mean loss and the mean gradient equal the whole batch's."""
    model = model_with(("mid",))
    whole, _ = step_terms(model, OBJECTIVE, loss_with(1.0), batch, 5, alone)
    reference = gradients(model, whole.total)
    sums: dict[str, Tensor] = {}
    totals = []
    choices = [(a, 2 + b) for a in (0, 1) for b in (0, 1)]
    for rows in choices:
        terms, _ = step_terms(model, OBJECTIVE, loss_with(0.5), replace(batch, rows_R=torch.tensor(rows)), 5, alone)
        assert torch.equal(terms.per_sample["token"], whole.per_sample["token"])
        assert torch.equal(terms.manifold, whole.manifold)  # type: ignore[arg-type]
        totals.append(terms.total)
        for name, gradient in gradients(model, terms.total).items():
            if gradient is not None:
                sums[name] = sums.get(name, 0) + gradient / len(choices)
    torch.testing.assert_close(torch.stack(totals).mean(), whole.total)
    for name, gradient in reference.items():
        if gradient is not None:
            torch.testing.assert_close(sums[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_terms_of_rows_name_the_samples_that_are_not_finite(batch: Batch) -> None:
    terms = Terms(
        torch.zeros(()),
        {"diffusion": torch.tensor([1.0, torch.nan]), "token": torch.tensor([1.0, 1.0, torch.inf, 1.0])},
        rows_R=torch.tensor([1, 3]),
    )
    assert terms.finite_B().tolist() == [True, True, False, False]


def test_without_a_diffusion_term_none_is_logged_or_compared(batch: Batch) -> None:
    off = replace(batch, rows_R=no_rows(torch.device("cpu")))
    terms, output = step_terms(model_with(("mid",)), OBJECTIVE, loss_with(0.0), off, 5, alone)
    assert set(terms.means()) == {"total", "token", "manifold", "cosine"}
    torch.testing.assert_close(terms.total, 0.5 * terms.alignment)
    assert tap_gradients(terms, output) == {}
    assert terms.finite_B().tolist() == [True] * 4


def test_only_weights_before_a_tap_stay_trainable(batch: Batch) -> None:
    model = model_with(("mid",))
    model.backbone.freeze_after(("mid",))
    off = replace(batch, rows_R=no_rows(torch.device("cpu")))
    terms, _ = step_terms(model, OBJECTIVE, loss_with(0.0), off, 5, alone)
    terms.total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    assert missing == []
    assert frozen == {"up_blocks", "conv_norm_out", "conv_out"}


# --- the draw -----------------------------------------------------------------------------------------------


def rows_of(cache: Any, fraction: float, step: int, world: int = 1, accumulation: int = 1, seed: int = 0) -> list[int]:
    """The rows as global positions."""
    chosen: list[int] = []
    for rank in range(world):
        layout = Layout(8, accumulation, rank, world)
        reader = TrainingReader(cache, OBJECTIVE, layout, seed, fraction)
        for micro, batch in enumerate(reader.read(step)):
            assert batch.rows_R is not None
            chosen += (layout.positions(micro).start + batch.rows_R).tolist()
    return sorted(chosen)


def test_every_layout_draws_the_same_rows(cache: Any) -> None:
    layouts = [(1, 1), (2, 1), (1, 2), (2, 2)]
    drawn = [[rows_of(cache, 0.5, step, *layout) for step in range(5)] for layout in layouts]
    assert all(d == drawn[0] for d in drawn)
    assert len({tuple(r) for r in drawn[0]}) > 1
    assert drawn[0] != [rows_of(cache, 0.5, step, seed=1) for step in range(5)]


@pytest.mark.slow
def test_every_position_is_as_likely(cache: Any) -> None:
    counts = torch.zeros(8)
    steps = 400
    for step in range(steps):
        rows = rows_of(cache, 0.25, step)
        assert [r // 4 for r in rows] == [0, 1]
        counts[rows] += 1
    # binomial with p = 1/4: four standard deviations
    assert ((counts / steps - 0.25).abs() < 4 * (0.25 * 0.75 / steps) ** 0.5).all(), counts


def test_pairs_within_a_stratum_are_all_drawn(cache: Any) -> None:
    pairs = {tuple(rows_of(cache, 0.5, step)[:2]) for step in range(60)}
    assert pairs <= set(combinations(range(4), 2))
    assert {p[0] // 2 for p in pairs} == {0}, "one of each two neighbours"


def test_a_fraction_changes_no_other_draw(cache: Any) -> None:
    cache = replace(cache, conditions=ClassConditions.withheld_with(0.5))
    whole, part = (TrainingReader(cache, OBJECTIVE, Layout(8), 0, f).read(3)[0] for f in (1.0, 0.25))
    assert whole.rows_R is None
    assert part.ids == whole.ids
    assert torch.equal(ids_of(part.condition, 10), ids_of(whole.condition, 10))
    assert all(torch.equal(getattr(part, name), getattr(whole, name)) for name in ("x0", "noise", "t_B"))


@pytest.mark.parametrize(
    ("fraction", "pq"), [(0.25, (1, 4)), (1.0, (1, 1)), (0.0, (0, 1)), (0.3, (3, 10)), (1 / 3, (1, 3))]
)
def test_strata(fraction: float, pq: tuple[int, int]) -> None:
    assert strata(fraction) == pq


def test_impossible_fractions_are_user_errors() -> None:
    with pytest.raises(UserError, match="give p/q"):
        strata(0.2503)
    loss = {"_target_": "urepa.method.losses.urepa_loss.URepaLoss", "diffusion_fraction": 0.25}
    objective = {"_target_": "urepa.method.objectives.flow.Flow"}
    config = {"loss": loss, "objective": objective, "trainer": {"batch_size": 12, "accumulation": 1}}
    check_fraction(config, 1)
    with pytest.raises(UserError, match="multiple of 8"):
        check_fraction(config, 2)
    assert NoLoss.diffusion_fraction == 1.0
