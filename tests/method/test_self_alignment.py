"""Losses without a teacher: their terms from their papers' formulas, which weights get gradients, and the averaged
weights of SRA."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import of_ids
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.types import Batch, Tokens
from urepa.method.losses.dispersive import Dispersive
from urepa.method.losses.dispersive_math import dispersive_loss
from urepa.method.losses.layer_sync import LayerSync
from urepa.method.losses.self_representation import LESS_NOISE, SelfRepresentation
from urepa.method.losses.self_representation_math import nearer_to_data, smooth_l1
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.schedules.constant import Constant
from urepa.method.schedules.similarity_cutoff import SimilarityCutoff
from urepa.method.self_alignment import own_states
from urepa.method.training_step import Aligned, AlignedModel, step_terms, tap_gradients
from urepa.models.backbones.sit_net import SiTNetwork
from urepa.training.own_states import own_heads

OBJECTIVE = FlowMath("linear", "uniform")
DECLARED: dict[str, Any] = {
    "layer_sync": LayerSync(lambda_max=0.2, warmup_steps=0, student="block_0", teacher="block_2"),
    "dispersive": Dispersive(lambda_max=0.5, warmup_steps=0, tap="block_0", temperature=0.5),
    "self_representation": SelfRepresentation(
        lambda_max=0.2, warmup_steps=0, student="block_0", teacher="block_2", less_noise=0.2, beta=0.05
    ),
}
each = pytest.mark.parametrize("name", DECLARED)


def alone(x_BD: Tensor) -> Tensor:
    return x_BD


def with_lambda(name: str, lam: float) -> Any:
    return replace(DECLARED[name], lambda_max=lam).build(schedule=Constant(), max_steps=100)


def build(name: str, seed: int = 0) -> tuple[Any, AlignedModel]:
    """The loss and a SiT of four blocks, none of whose weights is 0."""
    torch.manual_seed(seed)
    loss = with_lambda(name, DECLARED[name].lambda_max)
    backbone = SiTNetwork((3, 8, 8), 3, patch=2, depth=4, width=16, heads=2, qk_norm=False, positions="learned")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own = own_states(loss)
    return loss, AlignedModel(backbone, own_heads(loss, backbone), "teacher", own.taps, own.averaged)


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(4, 3, 8, 8, generator=random) for _ in range(2))
    t_B, draws = torch.tensor([0.1, 0.4, 0.7, 0.95]), {LESS_NOISE: torch.tensor([0.9, 0.0, 0.5, 1.0])}
    return Batch(list("abcd"), x0, noise, t_B, of_ids(torch.tensor([0, 1, 2, 3]), 3), {}, draws=draws)


def features(*names: str, seed: int = 0, grad: bool = True) -> dict[str, Tokens]:
    random = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(3, 6, 5, generator=random) for name in names}
    return {name: Tokens(x_BND.requires_grad_(grad), (2, 3)) for name, x_BND in made.items()}


# --- the terms ------------------------------------------------------------------------------------------------


def test_layer_sync_is_the_cosine_with_a_deeper_block() -> None:
    loss = DECLARED["layer_sync"].build(schedule=Constant(), max_steps=10)
    states = features("block_0", "block_2")
    per_sample, of_batch = loss.terms(Aligned(torch.zeros(3), states, {}), alone)
    assert of_batch is None
    one, other = (states[name].x_BND.detach().double() for name in ("block_0", "block_2"))
    for b in range(3):
        cosines = [
            float(one[b, n] @ other[b, n]) / math.sqrt(float(one[b, n] @ one[b, n]) * float(other[b, n] @ other[b, n]))
            for n in range(6)
        ]
        assert per_sample["token"][b].item() == pytest.approx(1 - sum(cosines) / 6, rel=1e-5)
    per_sample["token"].sum().backward()
    assert states["block_0"].x_BND.grad is not None
    assert states["block_2"].x_BND.grad is None, "the target has no gradient"


def test_the_dispersive_loss_is_the_logarithm_of_the_mean_over_all_pairs() -> None:
    """And it is what the published code computes, whose distances have each pair twice and each sample once."""
    random = torch.Generator().manual_seed(0)
    state = torch.randn(5, 12, generator=random).add(3.0).requires_grad_()
    ours = dispersive_loss(state, 0.5)
    x = state.detach().double()
    pairs = [math.exp(-float((x[i] - x[j]).pow(2).sum()) / 12 / 0.5) for i in range(5) for j in range(5)]
    assert ours.item() == pytest.approx(math.log(sum(pairs) / 25), rel=1e-5)
    published = state.detach().clone().requires_grad_()
    distance = F.pdist(published).pow(2) / 12
    theirs = torch.cat([distance, distance, torch.zeros(5)]).div(-0.5).exp().mean().log()
    (own,), (other,) = torch.autograd.grad(ours, state), torch.autograd.grad(theirs, published)
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_equal_samples_have_the_largest_dispersive_loss() -> None:
    state = torch.ones(4, 6, requires_grad=True)
    loss = dispersive_loss(state, 0.5)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, state)
    assert gradient.isfinite().all()


def test_the_distance_to_itself_is_quadratic_for_small_differences_and_linear_for_large_ones() -> None:
    one = torch.tensor([[[0.0, 0.0], [1.0, -2.0]]])
    other = torch.tensor([[[0.03, -0.01], [0.5, 1.0]]])
    by_hand = (0.03**2 / 0.1 + 0.01**2 / 0.1 + (0.5 - 0.025) + (3.0 - 0.025)) / 4
    assert float(smooth_l1(one, other, 0.05)) == pytest.approx(by_hand, rel=1e-5)


def test_the_second_times_are_nearer_to_the_data() -> None:
    t_B = torch.tensor([0.1, 0.5, 1.0])
    torch.testing.assert_close(
        nearer_to_data(OBJECTIVE, t_B, torch.tensor([0.2, 0.1, 0.0])), torch.tensor([0.0, 0.4, 1.0])
    )
    ddpm = EpsilonMath(0.00085, 0.012, "scaled_linear", 1000)
    nearer = nearer_to_data(ddpm, torch.tensor([50, 500, 999]), torch.tensor([0.2, 0.1, 0.0]))
    assert nearer.tolist() == [0, 400, 999]
    assert nearer.dtype == torch.int64


def test_sra_compares_with_the_averaged_weights_at_less_noise(batch: Batch) -> None:
    """The target of a separate model that has the averages, in eval mode."""
    loss, model = build("self_representation")
    _, teacher = build("self_representation", seed=5)
    model.averages = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    terms, output = step_terms(model, OBJECTIVE, loss, batch, 0, alone)
    s_B = torch.tensor([0.0, 0.4, 0.6, 0.75])
    x_s = OBJECTIVE.corrupt(batch.x0, batch.noise, s_B)
    with torch.no_grad():
        target = teacher.backbone(x_s, s_B, batch.condition, ("block_2",)).features["block_2"].x_BND
    torch.testing.assert_close(output.averaged["block_2"].x_BND, target)
    state = output.features["block_0"].x_BND
    head = model.heads["block_0/own"]
    student = head.linear2(F.silu(head.linear1(state)))
    expected = F.smooth_l1_loss(student, target, beta=0.05)
    torch.testing.assert_close(terms.alignment, expected)
    torch.testing.assert_close(terms.total, terms.per_sample["diffusion"].mean() + 0.2 * expected)


# --- gradients ------------------------------------------------------------------------------------------------


@each
def test_the_alignment_reaches_the_weights_before_its_tap_and_its_own_head_alone(batch: Batch, name: str) -> None:
    loss, model = build(name)
    terms, _ = step_terms(model, OBJECTIVE, loss, batch, 0, alone)
    assert terms.alignment is not None
    terms.alignment.backward()
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    before = {
        key for key, _ in model.named_parameters() if not key.startswith(("backbone.blocks.", "backbone.final_layer."))
    }
    first = {key for key, _ in model.named_parameters() if key.startswith("backbone.blocks.0.")}
    assert reached == before | first
    assert bool(model.heads) == (name == "self_representation")


@each
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_every_trained_weight_is_in_the_graph(batch: Batch, name: str, lam: float) -> None:
    """Which DDP requires, also at λ = 0 and after the end of the alignment."""
    _, model = build(name)
    for is_aligned in (True, False):
        model.zero_grad(set_to_none=True)
        terms, _ = step_terms(model, OBJECTIVE, with_lambda(name, lam), replace(batch, is_aligned=is_aligned), 0, alone)
        terms.total.backward()
        assert all(p.grad is not None for p in model.parameters())


@each
def test_at_a_lambda_of_0_the_gradients_are_those_without_the_loss(batch: Batch, name: str) -> None:
    loss, model = build(name)
    gradients = []
    for own in (with_lambda(name, 0.0), None):
        model.zero_grad(set_to_none=True)
        if own is None:
            diffusion = step_terms(model, OBJECTIVE, loss, replace(batch, is_aligned=False), 0, alone)[0]
            diffusion.per_sample["diffusion"].mean().backward()
        else:
            step_terms(model, OBJECTIVE, own, batch, 0, alone)[0].total.backward()
        gradients.append([p.grad for p in model.backbone.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


@each
def test_the_end_of_the_alignment_leaves_the_diffusion_term(batch: Batch, name: str) -> None:
    loss, model = build(name)
    terms, output = step_terms(model, OBJECTIVE, loss, replace(batch, is_aligned=False), 0, alone)
    assert terms.per_sample.keys() == {"diffusion"}
    assert (terms.alignment, terms.manifold, output.averaged) == (None, None, {})
    assert torch.equal(terms.total.detach(), terms.per_sample["diffusion"].mean().detach())


@each
def test_gradients_at_the_taps_are_measured_where_both_terms_have_one(batch: Batch, name: str) -> None:
    loss, model = build(name)
    terms, output = step_terms(model, OBJECTIVE, loss, batch, 0, alone)
    measured = tap_gradients(terms, output)
    assert measured.keys() == {"block_0"}
    assert terms.alignment is not None
    state = output.features["block_0"].x_BND
    d, a = (
        torch.autograd.grad(term, state, retain_graph=True)[0]
        for term in (terms.per_sample["diffusion"].mean(), terms.alignment)
    )
    torch.testing.assert_close(measured["block_0"], torch.stack([(d * d).sum(), (a * a).sum(), (d * a).sum()]))


# --- the averaged weights -------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Adds a constant in training mode only, as dropout adds noise, and records its mode."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.modes = block, []  # type: ignore[var-annotated]

    def forward(self, x_BND: Tensor, c_BD: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.block(x_BND, c_BD) + (1.0 if self.training else 0.0)


def test_the_averaged_weights_are_in_eval_mode_without_gradients_and_the_model_is_left_as_it_was(batch: Batch) -> None:
    loss, model = build("self_representation")
    model.averages = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    noisy = Noisy(model.backbone.blocks[1])  # type: ignore[index,arg-type]
    model.backbone.blocks[1] = noisy  # type: ignore[index,operator]
    model.averages = {n.replace("blocks.1.", "blocks.1.block."): a for n, a in model.averages.items()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    noisy.block.eval()  # a frozen part that stays in eval mode
    _, output = step_terms(model, OBJECTIVE, loss, batch, 0, alone)
    assert noisy.modes == [(False, False), (True, True)]
    assert (model.training, noisy.training, noisy.block.training) == (True, True, False)
    assert not output.averaged["block_2"].x_BND.requires_grad
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    assert {*model.state_dict()} == {*before}, "the averages are in no checkpoint or export of the model"


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_under_autocast_the_student_keeps_its_gradients(batch: Batch, dtype: torch.dtype) -> None:
    """Autocast keeps its casts of weights; those that are made without gradients must not be used with them."""
    loss, model = build("self_representation")
    with torch.autocast("cpu", dtype):
        terms, _ = step_terms(model, OBJECTIVE, loss, batch, 0, alone)
    terms.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.backbone.blocks.parameters())  # type: ignore[union-attr]


# --- what does not fit ----------------------------------------------------------------------------------------


def test_mistakes_are_named() -> None:
    cosine = SimilarityCutoff(threshold=0.5, ema_decay=0.9, recoverable=False, shape=Constant())
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: DECLARED["dispersive"].check_layout(8, 2), r"give trainer\.accumulation=1"),
        (lambda: DECLARED["dispersive"].check_layout(1, 1), "a batch has 1; give trainer.batch_size"),
        (lambda: replace(DECLARED["layer_sync"], teacher="block_0").check(), "are both block_0: give two taps"),
        (lambda: replace(DECLARED["self_representation"], student="block_2").check(), "are both block_2"),
        (lambda: DECLARED["dispersive"].check_schedule(cosine, 100), "measures the cosine, which this loss does not"),
    ]
    for call, text in refused:
        with pytest.raises(UserError, match=text):
            call()
    DECLARED["layer_sync"].check_schedule(cosine, 100)
    loss = DECLARED["layer_sync"].build(schedule=Constant(), max_steps=10)
    with pytest.raises(UserError, match="compares without a projection: give two taps of one width"):
        loss.heads({"block_0": 8, "block_2": 16})
    unlike = features("block_0") | {"block_2": Tokens(torch.zeros(3, 4, 5), (2, 2))}
    with pytest.raises(UserError, match="give two taps of one grid"):
        loss.terms(Aligned(torch.zeros(3), unlike, {}), alone)


def test_a_loss_that_would_train_nothing_is_refused() -> None:
    loss, model = build("layer_sync")
    model.backbone.requires_grad_(False)
    with pytest.raises(UserError, match="nothing trainable precedes block_0 or block_2"):
        own_heads(loss, model.backbone)
