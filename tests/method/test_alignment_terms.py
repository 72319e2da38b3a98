"""The alignment terms of `loss=several_terms`, compared with their formulas entry by entry in double precision, their
gradients, and two ranks compared with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from class_ids import of_ids
from terms_by_hand import BATCH, GRID, TERMS, TOKENS, WIDTH, alone, by_hand, tokens
from torch import Tensor, nn

from urepa.config.parts import KINDS
from urepa.core.collectives import gather_with_gradient
from urepa.core.descriptions import Formula
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.core.types import Batch, Denoised, Tokens
from urepa.method.heads.spatial_net import HiddenSpatialHead
from urepa.method.losses import loss_math
from urepa.method.losses.several_terms import SeveralTerms
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.schedules.constant import Constant
from urepa.method.terms.marginal_cosine import MarginalCosine
from urepa.method.terms.smooth_l1 import SmoothL1
from urepa.method.terms.structure import Structure
from urepa.method.training_step import Aligned, AlignedModel
from urepa.reports.comparison.comparable import incomparable_keys
from urepa.training.checks.sizes import check_shapes

Build = Callable[..., Any]


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_its_formula(name: str) -> None:
    student, teacher = tokens(0), 2 * tokens(1)
    found = TERMS[name].build()(student, teacher, None, alone)
    assert found.shape == (BATCH,)
    expected = by_hand(name, student.double().numpy(), teacher.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)
    assert min(expected) > 0.01


@pytest.mark.parametrize("name", TERMS)
def test_masked_tokens_are_left_out(name: str) -> None:
    student, teacher = tokens(0), tokens(1)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[0, 2] = mask[1, 0] = mask[1, 5] = False
    student[~mask] = 1e3
    student.requires_grad_()
    found = TERMS[name].build()(student, teacher, mask, alone)
    counted = [[x[i][mask[i]].detach().double().numpy() for i in range(BATCH)] for x in (student, teacher)]
    np.testing.assert_allclose(found.detach().numpy(), by_hand(name, *counted), rtol=2e-5)
    found.sum().backward()
    assert not student.grad[~mask].any()


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_computed_in_fp32(name: str) -> None:
    term = TERMS[name].build()
    in_bf16 = [tokens(seed).bfloat16() for seed in (0, 1)]
    torch.testing.assert_close(term(*in_bf16, None, alone), term(*(x.float() for x in in_bf16), None, alone))


def test_equal_tokens_have_no_term_and_lengths_matter_where_they_are_said_to() -> None:
    x, y = tokens(0), tokens(1)
    for name, term in TERMS.items():
        mathematics = term.build()
        if not name.startswith("contrastive"):
            torch.testing.assert_close(mathematics(x, x, None, alone), torch.zeros(BATCH), atol=1e-6, rtol=0)
        is_same = torch.allclose(mathematics(3 * x, y, None, alone), mathematics(x, y, None, alone), rtol=1e-4)
        assert is_same != term.compares_lengths or "centred" in name, name


def test_the_marginal_terms_have_no_gradient_within_their_margins() -> None:
    teacher = tokens(0)
    student = (teacher + 0.02 * tokens(1)).requires_grad_()
    for name in ("marginal_cosine", "marginal_relations"):
        value = TERMS[name].build()(student, teacher, None, alone)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert not value.any()
        assert not gradient.any()
    without = MarginalCosine(margin=0.0).build()(student, teacher, None, alone)
    torch.testing.assert_close(without, loss_math.token_loss(student, teacher))


def test_the_terms_contain_urepas_manifold_losses() -> None:
    student, teacher = tokens(0), tokens(1)
    within = TERMS["token_relations"].build()(student, teacher, None, alone)
    torch.testing.assert_close(within.mean(), loss_math.manifold_loss_token(student, teacher))
    torch.testing.assert_close(
        TERMS["structure"].build()(student, teacher, None, alone), TOKENS * (TOKENS - 1) * within
    )
    between = TERMS["sample_relations"].build()(student, teacher, None, alone)
    pooled = (loss_math.pool_tokens(x) for x in (student, teacher))
    torch.testing.assert_close(between.mean(), loss_math.manifold_loss_sample(*pooled))


# --- in the loss ---------------------------------------------------------------------------------------------


def declared(terms: dict[str, Any], **changes: Any) -> SeveralTerms:
    own: dict[str, Any] = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 0.0, "level": "sample"}
    return SeveralTerms(**own | {"taps": {"mid": 1.0}, "spike_threshold": 9.0, "terms": terms} | changes)


def batch_of(teacher: Tensor) -> Batch:
    x0 = torch.zeros(BATCH, 1, 2, 2)
    ids = of_ids(torch.zeros(BATCH, dtype=torch.long), 3)
    return Batch(list("abcd"), x0, x0, torch.zeros(BATCH), ids, {"": Tokens(teacher, GRID)})


def output_of(**students: Tensor) -> Aligned:
    return Aligned(torch.zeros(BATCH, 1, 1, 1), {}, {tap: Tokens(x, GRID) for tap, x in students.items()})


def test_the_total_is_the_weighted_sum_over_taps() -> None:
    terms = {"mse": replace(TERMS["squared_distance"], weight=2.0), "pairs": replace(TERMS["structure"], weight=0.25)}
    changes: dict[str, Any] = {"taps": {"mid": 3.0, "end": 1.0}, "token_weight": 0.5, "manifold_weight": 3.0}
    loss = declared(terms, **changes).build(schedule=Constant(), max_steps=9)
    teacher, students = tokens(0), {"mid": tokens(1), "end": tokens(2)}
    diffusion = torch.rand(BATCH)
    found = loss(diffusion, output_of(**students), batch_of(teacher), 5, alone)
    plain = declared(terms, **changes)
    plain = URepaLoss(**{k: v for k, v in vars(plain).items() if k not in ("_target_", "token_weight", "terms")})
    usual = plain.build(schedule=Constant(), max_steps=9)(diffusion, output_of(**students), batch_of(teacher), 5, alone)
    assert torch.equal(found.manifold, usual.manifold)
    assert torch.equal(found.per_sample["token"], usual.per_sample["token"])
    by_name = {
        name: sum(
            share * term.build()(students[tap], teacher, None, alone) for tap, share in (("mid", 0.75), ("end", 0.25))
        )
        for name, term in terms.items()
    }
    for name, value in by_name.items():
        torch.testing.assert_close(found.per_sample[f"term/{name}"], value)
    token = usual.per_sample["token"]
    weighted = (0.5 * token + 2 * by_name["mse"] + 0.25 * by_name["pairs"]).mean()
    torch.testing.assert_close(found.alignment, weighted + 3 * usual.manifold)
    torch.testing.assert_close(found.total, diffusion.mean() + 0.5 * (weighted + 3 * usual.manifold))


def test_terms_of_weight_0_are_logged_without_a_gradient() -> None:
    loss = declared({"mse": replace(TERMS["squared_distance"], weight=0.0)}).build(schedule=Constant(), max_steps=9)
    without_token = declared({"mse": TERMS["squared_distance"]}, token_weight=0).build(schedule=Constant(), max_steps=9)
    student, teacher = tokens(0).requires_grad_(), tokens(1)
    terms = loss(torch.zeros(BATCH), output_of(mid=student), batch_of(teacher), 5, alone)
    assert not terms.per_sample["term/mse"].requires_grad
    assert terms.per_sample["token"].requires_grad
    assert terms.means()["term/mse"] > 0
    other = without_token(torch.zeros(BATCH), output_of(mid=student), batch_of(teacher), 5, alone)
    (gradient,) = torch.autograd.grad(other.total, student)
    torch.testing.assert_close(gradient, 0.5 * 2 * (student.detach() - teacher) / student.numel())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terms": {}}, "has no other terms: "),
        ({"terms": {"a_b": Structure()}}, "loss.terms.a_b: a term's name may only have letters and digits"),
        ({"terms": {"a": Structure(weight=0.0)}, "token_weight": 0.0}, "all weights of the alignment are 0"),
    ],
)
def test_terms_without_effect_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        declared(**{"terms": {}} | changes).check()


def test_terms_that_compare_samples_need_the_whole_batch() -> None:
    within, between = (
        declared({"a": Structure()}, level="token"),
        declared({"a": TERMS["contrastive_batch"]}, level="token"),
    )
    within.check_layout(1, 4)
    with pytest.raises(UserError, match=r"loss\.terms\.a compares samples with each other, but a batch has 1"):
        between.check_layout(1, 1)
    with pytest.raises(UserError, match=r"loss\.terms\.a compares all samples.*trainer\.accumulation=2"):
        between.check_layout(8, 2)


def test_every_term_is_declared_and_described() -> None:
    assert {type(term) for term in TERMS.values()} == set(KINDS["term"].values())
    for name, term in TERMS.items():
        term.check()
        words, formula = term.description("x")
        assert isinstance(formula, Formula), name
        assert str(words).startswith("The term x, of weight 1, is ")


def test_heads_keep_lengths_only_for_terms_that_compare_them() -> None:
    head = HiddenSpatialHead(8, in_width=6, out_width=5)
    tapped = Tokens.from_map(torch.randn(2, 6, 2, 3))
    usual = head(tapped, torch.zeros(2), (2, 3)).x_BND
    head.unit_length = False
    free = head(tapped, torch.zeros(2), (2, 3)).x_BND
    torch.testing.assert_close(F.normalize(free, dim=-1), usual)
    assert not torch.allclose(free.norm(dim=-1), torch.ones(2, 6))
    assert not declared({"a": Structure()}).compares_lengths
    assert declared({"a": Structure(), "b": SmoothL1(beta=1.0)}).compares_lengths


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("overrides", "compares"),
    [
        (("loss=repa_tiny", "head=irepa"), True),  # w = 0, and the manifold term is computed and logged
        (("loss=repa_tiny", "head=irepa", "loss.level=sample"), False),
        (("loss=repa_early_terms", "head=irepa", "loss.level=sample", "+term@loss.terms.a=structure"), True),
        (("loss=repa_early_terms", "head=irepa", "loss.level=sample", "+term@loss.terms.a=squared_distance"), False),
    ],
)
def test_a_teacher_with_a_class_token_alone_is_refused_where_tokens_are_compared(
    compose: Build, overrides: tuple[str, ...], compares: bool
) -> None:
    """Elsewhere such a term was 0 and trained nothing."""
    given = ["+experiment=repa_cifar10_pixels", *overrides, "teacher.grid=[1,1]"]
    config = compose(*given, "evaluation=none")
    if not compares:
        check_shapes(config)
        return
    with pytest.raises(UserError, match=r"^teacher\.grid has one token, and the loss compares the tokens of a sample"):
        check_shapes(config)
    check_shapes(compose(*given, "evaluation=none", "teacher.grid=[1,2]"))


@pytest.mark.parametrize("unit_length", [True, False])
def test_projectors_and_terms_are_computed_in_fp32_under_bf16(unit_length: bool) -> None:
    class Tapped(nn.Module):
        def forward(self, x: Tensor, t_B: Tensor, condition: Any, taps: Any, rows_R: Any) -> Denoised:
            return Denoised(x, {"mid": Tokens.from_map(F.conv2d(x, torch.ones(6, 3, 1, 1)))})

    torch.manual_seed(0)
    head = HiddenSpatialHead(8, in_width=6, out_width=5)
    head.unit_length = unit_length
    model = AlignedModel(Tapped(), {"mid": head})
    x = torch.randn(2, 3, *GRID)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, torch.zeros(2), of_ids(torch.zeros(2, dtype=torch.long), 3), grids={"": GRID})
        value = TERMS["squared_distance"].build()(output.tokens["mid"].x_BND, tokens(0, 2), None, alone)
    assert (output.features["mid"].x_BND.dtype, output.tokens["mid"].x_BND.dtype) == (torch.bfloat16, torch.float32)
    expected = head(output.features["mid"].float(), torch.zeros(2), GRID).x_BND
    assert torch.equal(output.tokens["mid"].x_BND, expected)
    assert value.dtype == torch.float32


@pytest.mark.slow
def test_values_of_unlike_terms_are_not_compared(compose: Build) -> None:
    def flat(*overrides: str) -> dict[str, str]:
        config = compose("+experiment=repa_cifar10_pixels", "loss=repa_early_terms", *SMOOTH, *overrides)
        return {key: str(value) for key, value in flatten(config).items()}

    keys = ("val/term/a", "val/token", "val/diffusion", "val/total")
    for override, key, unlike in (
        ("loss.terms.a.beta=0.5", "loss.terms.a.beta", {"val/term/a", "val/total"}),
        ("loss.terms.a.weight=0.5", "loss.terms.a.weight", {"val/total"}),
        ("loss.token_weight=0.5", "loss.token_weight", {"val/total"}),
        ("loss.spatial_norm=0.5", "loss.spatial_norm", {"val/term/a", "val/token", "val/total"}),
    ):
        found = {name: incomparable_keys(name, flat(override), flat()) for name in keys}
        assert found == {name: [key] if name in unlike else [] for name in keys}, override


SMOOTH = ("+term@loss.terms.a=smooth_l1",)

# --- ranks ---------------------------------------------------------------------------------------------------

OF_BATCHES = ("sample_relations", "sample_relations_centred", "contrastive_batch")


def _gradient(name: str, student: Tensor, teacher: Tensor, gather: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The mean term, and its gradient at a weight that the students are multiplied by."""
    weight = torch.linspace(0.5, 2.0, WIDTH).requires_grad_()
    value = TERMS[name].build()(student * weight, teacher, None, gather).mean()
    return value.detach(), torch.autograd.grad(value, weight)[0]


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = slice(2 * rank, 2 * rank + 2)
    found = {}
    for name in OF_BATCHES:
        value, gradient = _gradient(name, tokens(0)[own], tokens(1)[own], gather_with_gradient)
        dist.all_reduce(value)
        dist.all_reduce(gradient)
        found[name] = (value / 2, gradient / 2)  # DDP's mean over ranks
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_have_the_global_batchs_terms_and_gradients(tmp_path: Path) -> None:
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in OF_BATCHES:
            value, gradient = _gradient(name, tokens(0), tokens(1), alone)
            torch.testing.assert_close(found[name][0], value)
            torch.testing.assert_close(found[name][1], gradient)


# --- in training ---------------------------------------------------------------------------------------------

TWO = ("loss=repa_early_terms", "+term@loss.terms.mse=squared_distance", "+term@loss.terms.pairs=sample_relations")


@pytest.mark.slow
def test_lambda_0_trains_the_backbone_of_no_loss(small_sit: list[str], trainer_of: Build) -> None:
    """Bit for bit. With λ > 0 the gradient reaches the head and the blocks up to the tap, in which it differs."""

    def trained(*overrides: str) -> tuple[Any, dict[str, Tensor], Any]:
        given = [o for o in small_sit if not ("loss=none" in overrides and o.startswith("head."))]
        trainer = trainer_of(*given, *overrides)
        updates = [trainer.update(i, trainer.reader.read(i), with_tap_gradients=False) for i in range(3)]
        return trainer, {k: v.detach().clone() for k, v in trainer.model.backbone.named_parameters()}, updates[-1]

    _, without, _ = trained("loss=none")
    trainer, off, update = trained(*TWO, "loss.warmup_steps=0", "loss.lambda_max=0")
    assert all(torch.equal(without[k], off[k]) for k in without)
    assert {"term/mse", "term/pairs", "token"} <= update.terms.means().keys()
    assert not trainer.model.heads["block_1"].unit_length
    row = trainer.validate(3)
    assert {"val/term/mse", "val/term/pairs", "val/token"} <= row.keys()
    trainer, on, update = trained(*TWO, "loss.warmup_steps=0", "loss.token_weight=0")
    assert any(not torch.equal(without[k], on[k]) for k in without)
    assert update.norms["head"] > 0
    row = trainer.validate(3)
    aligned = row["val/term/mse"] + row["val/term/pairs"]
    assert row["val/total"] == pytest.approx(row["val/diffusion"] + 0.5 * aligned, rel=1e-6)
    batch = trainer.reader.read(3)[0]
    terms, _ = trainer.forward(batch, 3)
    grads = torch.autograd.grad(terms.alignment, list(trainer.model.parameters()), allow_unused=True)
    reached = {
        k for (k, _), g in zip(trainer.model.named_parameters(), grads, strict=True) if g is not None and g.any()
    }
    assert any(k.startswith("heads.") for k in reached)
    assert any(k.startswith("backbone.blocks.1.") for k in reached)
    assert not any(k.startswith(("backbone.blocks.2.", "backbone.blocks.3.", "backbone.final")) for k in reached)
