"""A training step: which weights get gradients from which loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import ids_of, of_ids
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.types import Batch, Tokens
from urepa.method.heads.conv_net import ConvHead
from urepa.method.losses import loss_math
from urepa.method.losses.no_loss import NoLoss
from urepa.method.losses.no_loss_math import DiffusionOnly
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.losses.urepa_loss_math import AlignmentLoss
from urepa.method.objectives.ddpm_math import VelocityMath
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import (
    Aligned,
    AlignedModel,
    Terms,
    step_terms,
    tap_gradients,
)
from urepa.models.backbones.unet_net import tiny_unet

Build = Callable[..., Any]


def alone(x: Tensor) -> Tensor:
    return x


def declared(**changes: Any) -> URepaLoss:
    defaults: dict[str, Any] = {
        "lambda_max": 0.5,
        "warmup_steps": 4,
        "manifold_weight": 3.0,
        "level": "sample",
        "taps": {"mid": 1.0},
        "spike_threshold": 0.1,
        "manifold_clip": None,
    }
    return URepaLoss(**(defaults | changes))


def urepa_loss(**changes: Any) -> AlignmentLoss:
    return declared(**changes).build(schedule=Constant(), max_steps=100)


@pytest.fixture(scope="module")
def objective() -> VelocityMath:
    return VelocityMath(0.00085, 0.012, "linear", 1000)


@pytest.fixture(scope="module")
def model() -> AlignedModel:
    torch.manual_seed(0)
    backbone = tiny_unet(
        [32, 64], [False, True], 1, cross_attention_dim=32, head_dim=32, latent_shape=(4, 8, 8), num_classes=3
    )
    taps = ("mid", "dec_first")
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


# --- the sum ------------------------------------------------------------------------------------------------


def made_up(seed: int) -> tuple[Tensor, Aligned]:
    random = torch.Generator().manual_seed(seed)
    tokens = {tap: Tokens(torch.randn(4, 6, 5, generator=random), (2, 3)) for tap in ("mid", "dec_first")}
    return torch.rand(4, generator=random), Aligned(torch.zeros(4, 1, 1, 1), {}, tokens)


def manifold_by_hand(student: Tensor, teacher: Tensor, level: str) -> Tensor:
    sample = loss_math.manifold_loss_sample(loss_math.pool_tokens(student), loss_math.pool_tokens(teacher))
    token = loss_math.manifold_loss_token(student, teacher)
    return {"sample": sample, "token": token, "both": (sample + token) / 2}[level]


@pytest.mark.parametrize("level", ["sample", "token", "both"])
def test_the_total_is_the_documents_sum_with_weighted_taps(batch: Batch, level: str) -> None:
    loss = urepa_loss(taps={"mid": 3.0, "dec_first": 1.0}, level=level)
    diffusion, output = made_up(0)
    terms = loss(diffusion, output, batch, 2, alone)
    teacher = batch.teacher_BND
    assert teacher is not None
    token, manifold = torch.zeros(()), torch.zeros(())
    for tap, share in (("mid", 0.75), ("dec_first", 0.25)):
        student = output.tokens[tap].x_BND
        token = token + share * loss_math.token_loss(student, teacher).mean()
        manifold = manifold + share * manifold_by_hand(student, teacher, level)
    assert terms.manifold is not None
    torch.testing.assert_close(terms.manifold, manifold)
    torch.testing.assert_close(terms.per_sample["token"].mean(), token)
    torch.testing.assert_close(terms.alignment, token + 3 * manifold)
    expected = loss_math.total_loss(diffusion.mean(), token, manifold, lam=0.25, weight=3.0)  # step 2 of 4
    torch.testing.assert_close(terms.total, expected)


def test_only_the_ratio_of_tap_weights_counts(batch: Batch) -> None:
    diffusion, output = made_up(0)
    totals = [
        urepa_loss(taps={"mid": a, "dec_first": b})(diffusion, output, batch, 9, alone).total
        for a, b in ((1.0, 2.0), (5.0, 10.0))
    ]
    torch.testing.assert_close(*totals)


def test_a_tap_of_weight_zero_does_not_affect_the_loss(batch: Batch) -> None:
    diffusion, output = made_up(0)
    other = made_up(1)[1]
    mixed = replace(output, tokens=output.tokens | {"dec_first": other.tokens["dec_first"]})
    loss = urepa_loss(taps={"mid": 1.0, "dec_first": 0.0})
    assert torch.equal(loss(diffusion, output, batch, 9, alone).total, loss(diffusion, mixed, batch, 9, alone).total)


def test_the_sample_manifold_compares_the_gathered_batch(batch: Batch) -> None:
    """Two halves that gather from each other have the whole batch's manifold loss."""
    diffusion, output = made_up(0)
    teacher = batch.teacher_BND
    assert teacher is not None
    student = output.tokens["mid"].x_BND
    whole = urepa_loss()(diffusion, output, batch, 9, alone).manifold
    rest = [loss_math.pool_tokens(x[2:]) for x in (student, teacher)]
    half = Aligned(output.prediction_RCHW, {}, {"mid": Tokens(student[:2], (2, 3))})
    halved = replace(batch, teachers={"": Tokens(teacher[:2], (2, 3))})
    gathered = urepa_loss()(diffusion[:2], half, halved, 9, lambda x: torch.cat([x, rest.pop(0)]))
    torch.testing.assert_close(gathered.manifold, whole)


def test_without_alignment_the_total_is_the_diffusion_loss(batch: Batch) -> None:
    diffusion, output = made_up(0)
    terms = DiffusionOnly()(diffusion, output, batch, 9, alone)
    assert torch.equal(terms.total, diffusion.mean())
    assert (terms.alignment, terms.manifold, DiffusionOnly().lam(9)) == (None, None, 0.0)
    assert set(terms.means()) == {"total", "diffusion"}


def test_logged_means_include_the_cosine(batch: Batch) -> None:
    diffusion, output = made_up(0)
    means = urepa_loss()(diffusion, output, batch, 9, alone).means()
    assert set(means) == {"total", "diffusion", "token", "manifold", "cosine"}
    torch.testing.assert_close(means["cosine"], 1 - means["token"])


def test_a_clipped_manifold_is_capped_and_has_no_gradient(batch: Batch) -> None:
    diffusion, output = made_up(0)
    student = output.tokens["mid"].x_BND.requires_grad_()
    free = urepa_loss()(diffusion, output, batch, 9, alone)
    assert free.manifold is not None
    value = free.manifold.item()

    def gradient(**changes: Any) -> tuple[Terms, Tensor]:
        terms = urepa_loss(**changes)(diffusion, output, batch, 9, alone)
        return terms, torch.autograd.grad(terms.total, student)[0]

    terms, clipped = gradient(manifold_clip=value / 2)
    assert terms.manifold is not None
    assert terms.manifold.item() == value  # what is logged stays true
    expected = terms.per_sample["token"].mean() + 3.0 * value / 2
    torch.testing.assert_close(terms.alignment, expected)
    token_alone = gradient(manifold_weight=0.0)[1]
    torch.testing.assert_close(clipped, token_alone)
    torch.testing.assert_close(gradient(manifold_clip=value * 2)[1], gradient()[1])
    assert not torch.allclose(token_alone, gradient()[1])


def test_spikes_are_counted_after_the_warm_up() -> None:
    loss = urepa_loss(spike_threshold=0.1)
    high, low = (Terms(torch.zeros(()), {}, manifold=torch.tensor(m)) for m in (0.2, 0.05))
    assert loss.is_spike(high, 3) is None
    assert bool(loss.is_spike(high, 4))
    assert not bool(loss.is_spike(low, 4))
    assert DiffusionOnly().is_spike(high, 9) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taps": {}}, "at least one tap"),
        ({"taps": {"mid": 0.0}}, "not all 0"),
        ({"taps": {"mid": 2.0, "enc_last": -1.0}}, "0 or more"),
        ({"lambda_max": -0.5}, "loss.lambda_max"),
        ({"manifold_weight": -1.0}, "loss.manifold_weight"),
        ({"time_power": 1.0}, "give loss.manifold_weight=0 with it"),
    ],
)
def test_impossible_weights_are_user_errors(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        declared(**change).check()
    with pytest.raises(UserError, match=words):
        urepa_loss(**change)


@pytest.mark.parametrize("level", ["sample", "both"])
def test_a_layout_that_cannot_hold_the_gram_group_is_a_user_error(level: str) -> None:
    with pytest.raises(UserError, match="a batch has 1"):
        declared(level=level).check_layout(1, 1)
    with pytest.raises(UserError, match=r"trainer\.accumulation=2"):
        declared(level=level).check_layout(8, 2)
    declared(level=level).check_layout(2, 1)
    declared(level="token").check_layout(1, 4)
    NoLoss().check_layout(1, 4)


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["sample", "token"])
def test_tap_gradients_are_autograds_own(model: AlignedModel, batch: Batch, objective: Any, level: str) -> None:
    """The reference runs diffusers alone, with its own hooks, and computes the losses explicitly."""
    loss = urepa_loss(taps={"mid": 1.0, "dec_first": 3.0}, level=level)
    terms, output = step_terms(model, objective, loss, batch, 9, alone)
    measured = tap_gradients(terms, output)

    unet: Any = model.backbone.unet
    blocks: dict[str, nn.Module] = {"mid": unet.mid_block, "dec_first": unet.up_blocks[0]}
    states: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda m, a, out, tap=tap: states.update({tap: out}))
        for tap, block in blocks.items()
    ]
    x_t = objective.corrupt(batch.x0, batch.noise, batch.t_B)
    text = model.backbone.embedding_KLE[ids_of(batch.condition, 3)]
    prediction = unet(x_t, batch.t_B, encoder_hidden_states=text).sample
    for handle in handles:
        handle.remove()
    diffusion = F.mse_loss(prediction, objective.target(batch.x0, batch.noise, batch.t_B))
    teacher = batch.teacher_BND
    assert teacher is not None
    alignment = torch.zeros(())
    for tap, share in (("mid", 0.25), ("dec_first", 0.75)):
        student = model.heads[tap](Tokens.from_map(states[tap]), batch.t_B, (2, 3)).x_BND
        token = 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
        alignment = alignment + share * (token + 3 * manifold_by_hand(student, teacher, level))
    assert set(measured) == set(blocks)
    for tap, state in states.items():
        d, a = (torch.autograd.grad(t, state, retain_graph=True)[0].double() for t in (diffusion, alignment))
        expected = torch.stack([(d * d).sum(), (a * a).sum(), (d * a).sum()]).float()
        scale = float((expected[0] * expected[1]).sqrt())
        torch.testing.assert_close(measured[tap][:2], expected[:2], rtol=1e-4, atol=0)
        assert measured[tap][2].item() == pytest.approx(expected[2].item(), abs=1e-4 * scale)
        assert scale > 0


def test_without_alignment_there_are_no_tap_gradients(model: AlignedModel, batch: Batch, objective: Any) -> None:
    assert tap_gradients(*step_terms(model, objective, DiffusionOnly(), batch, 9, alone)) == {}


def test_measuring_tap_gradients_leaves_the_update_alone(model: AlignedModel, batch: Batch, objective: Any) -> None:
    gradients = []
    for measure in (False, True):
        terms, output = step_terms(model, objective, urepa_loss(taps={"mid": 1.0, "dec_first": 1.0}), batch, 9, alone)
        if measure:
            tap_gradients(terms, output)
        gradients.append(torch.autograd.grad(terms.total, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def trained(build_trainer: Build, *overrides: str, steps: int = 5) -> tuple[Any, list[Any]]:
    trainer = build_trainer(*overrides)
    updates = [trainer.update(step, trainer.reader.read(step), with_tap_gradients=step == 0) for step in range(steps)]
    return trainer, updates


@pytest.mark.slow
def test_lambda_zero_and_no_loss_train_the_same_backbone(build_trainer: Build) -> None:
    """Bit for bit after real updates: the arm λ=0 equals loss=none and still logs its terms."""
    start = weights(build_trainer("loss=none").model.backbone)
    off, updates = trained(build_trainer, "loss.lambda_max=0")
    off_ema = {k.removeprefix("backbone."): v for k, v in off.ema.shadow.items() if k.startswith("backbone.")}
    none, _ = trained(build_trainer, "loss=none")
    assert all(
        torch.equal(p, dict(none.model.backbone.named_parameters())[k]) for k, p in weights(off.model.backbone).items()
    )
    assert all(torch.equal(v, none.ema.shadow[f"backbone.{k}"]) for k, v in off_ema.items())
    assert any(not torch.equal(p, start[k]) for k, p in weights(off.model.backbone).items())
    assert "token" in updates[-1].terms.means()
    assert updates[-1].norms["head"].item() == 0.0
    assert not none.model.heads
    on, _ = trained(build_trainer, "loss.warmup_steps=0")
    assert any(not torch.equal(p, weights(off.model.backbone)[k]) for k, p in weights(on.model.backbone).items())


@pytest.mark.slow
def test_arms_start_from_the_same_weights(build_trainer: Build) -> None:
    """Another head depth or an additional tap changes no other weight; another seed changes all."""
    base = weights(build_trainer().model)
    deeper = weights(build_trainer("head.depth=3").model)
    two_taps = weights(build_trainer("+loss.taps.dec_first=1").model)
    other = weights(build_trainer("seed=1").model)
    assert all(torch.equal(base[k], deeper[k]) for k in base if k.startswith("backbone."))
    assert all(torch.equal(base[k], two_taps[k]) for k in base)
    assert not torch.equal(two_taps["heads.mid.layers.0.weight"], two_taps["heads.dec_first.layers.0.weight"])
    random = [k for k in base if base[k].ndim > 1]
    assert not any(torch.equal(base[k], other[k]) for k in random)


@pytest.mark.slow
def test_validation_does_not_depend_on_the_seed(build_trainer: Build) -> None:
    one = build_trainer().validation.reader.read(0)
    other = build_trainer("seed=1").validation.reader.read(0)
    assert one.ids == other.ids
    assert torch.equal(one.noise, other.noise)
    assert torch.equal(one.t_B, other.t_B)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["token"])
def test_accumulated_micro_batches_have_the_whole_batchs_gradient(build_trainer: Build, level: str) -> None:
    """Adam's first moment after one update is (1 − β1)·g, where g is the gradient of the update."""
    seen = []
    for accumulation in (1, 2, 4):
        common = (f"loss.level={level}", "loss.warmup_steps=0", f"trainer.accumulation={accumulation}")
        trainer, (update,) = trained(build_trainer, *common, "trainer.clip_norm=null", steps=1)
        state = trainer.optimizer.state
        moments = {k: state[p]["exp_avg"].clone() / 0.1 for k, p in trainer.model.named_parameters()}
        seen.append((moments, {k: v.item() for k, v in update.terms.means().items()}))
    for moments, means in seen[1:]:
        assert means == pytest.approx(seen[0][1], rel=1e-4)
        for name, gradient in moments.items():
            torch.testing.assert_close(gradient, seen[0][0][name], rtol=1e-3, atol=1e-5)
