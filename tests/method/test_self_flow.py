"""Self-Flow: inputs at two times, tokens conditioned on their own, and the target of the averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from class_ids import of_ids
from torch import Tensor

from urepa.config.declared import declaration_of
from urepa.core.conditions import CLASS
from urepa.core.errors import UserError
from urepa.core.types import Batch
from urepa.method.losses.self_flow import OTHER_TIME, WHICH_TOKENS, SelfFlow
from urepa.method.objectives.flow_data_math import FlowDataMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.schedules.constant import Constant
from urepa.method.self_alignment import own_states
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.backbones.sit_net import SiTNetwork
from urepa.models.token_draws import uniform_of_tokens
from urepa.training.own_states import own_heads

Build = Callable[..., Any]
OBJECTIVE = FlowMath("linear", "uniform")
DECLARED = SelfFlow(lambda_max=0.8, warmup_steps=0, student="block_0", teacher="block_2", share=0.4)
U = torch.tensor([0.9, 0.0, 0.5, 0.2])
WHICH = torch.tensor([0.3, 0.6, 0.1, 0.8])


def build(seed: int = 0, **changes: Any) -> tuple[Any, AlignedModel]:
    """The loss and a SiT of four blocks, none of whose weights is 0."""
    torch.manual_seed(seed)
    loss = replace(DECLARED, **changes).build(schedule=Constant(), max_steps=10)
    backbone = SiTNetwork((3, 8, 8), 3, patch=2, depth=4, width=16, heads=2, qk_norm=False, positions="sincos")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own = own_states(loss)
    return loss, AlignedModel(backbone, own_heads(loss, backbone), "teacher", own.taps, own.averaged)


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(4, 3, 8, 8, generator=random) for _ in range(2))
    t_B, draws = torch.tensor([0.1, 0.4, 0.7, 0.95]), {OTHER_TIME: U, WHICH_TOKENS: WHICH}
    return Batch(list("abcd"), x0, noise, t_B, of_ids(torch.tensor([0, 1, 2, 3]), 3), {}, draws=draws)


def second_times() -> Tensor:
    """The quantiles of uniform times are (i + 1/2)/1000."""
    return ((U * 1000).long() + 0.5) / 1000


def by_hand(net: SiTNetwork, x_t: Tensor, t_BN: Tensor, classes: Any, last: int) -> Tensor:
    """The state behind block `last`, with each token modulated by its own condition, token by token."""
    x = net.x_embedder(x_t) + net.pos_embed
    y = net.y_embedder(classes[CLASS])
    c = torch.stack([net.t_embedder(t_BN[:, n]) + y for n in range(t_BN.shape[1])], dim=1)
    for block in net.blocks[: last + 1]:
        parts = [block.adaLN_modulation(c[:, n]).chunk(6, 1) for n in range(c.shape[1])]  # type: ignore[operator]
        shift1, scale1, gate1, shift2, scale2, gate2 = (torch.stack(part, 1) for part in zip(*parts, strict=True))
        x = x + gate1 * block.attn(F.layer_norm(x, (16,), eps=1e-6) * (1 + scale1) + shift1)  # type: ignore[operator]
        x = x + gate2 * block.mlp(F.layer_norm(x, (16,), eps=1e-6) * (1 + scale2) + shift2)  # type: ignore[operator]
    return x


def test_a_step_is_that_of_its_formulas(batch: Batch) -> None:
    loss, model = build()
    _, teacher = build(seed=5)
    model.averages = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    terms, output = step_terms(model, OBJECTIVE, loss, batch, 0, lambda x: x)
    s_B = second_times()
    x_t = torch.empty_like(batch.x0)
    t_BN = torch.empty(4, 16)
    which = uniform_of_tokens(WHICH, 16) < 0.4
    assert 0.2 < which.float().mean() < 0.6
    for b in range(4):
        for n in range(16):
            t = float(s_B[b] if which[b, n] else batch.t_B[b])
            patch = (b, slice(None), slice(n // 4 * 2, n // 4 * 2 + 2), slice(n % 4 * 2, n % 4 * 2 + 2))
            x_t[patch] = (1 - t) * batch.x0[patch] + t * batch.noise[patch]
            t_BN[b, n] = t
    state = by_hand(model.backbone, x_t, t_BN, batch.condition, 0)  # type: ignore[arg-type]
    torch.testing.assert_close(output.features["block_0"].x_BND, state, atol=1e-5, rtol=1e-4)
    earlier_B = torch.minimum(batch.t_B, s_B)
    x_s = (1 - earlier_B.view(-1, 1, 1, 1)) * batch.x0 + earlier_B.view(-1, 1, 1, 1) * batch.noise
    with torch.no_grad():
        target = teacher.backbone(x_s, earlier_B, batch.condition, ("block_2",)).features["block_2"].x_BND
    head = model.heads["block_0/own"]
    student = head.linear2(F.silu(head.linear1(state)))
    expected = (1 - F.cosine_similarity(student, target, dim=-1)).mean()
    assert terms.alignment is not None
    torch.testing.assert_close(terms.alignment, expected, atol=1e-5, rtol=1e-4)
    velocity = (output.prediction_RCHW - (batch.noise - batch.x0)).square().mean((1, 2, 3))
    torch.testing.assert_close(terms.per_sample["diffusion"], velocity)
    torch.testing.assert_close(terms.total, velocity.mean() + 0.8 * terms.alignment)


def test_gradients_reach_all_weights_and_the_alignments_those_before_its_tap(batch: Batch) -> None:
    loss, model = build()
    terms, _ = step_terms(model, OBJECTIVE, loss, batch, 0, lambda x: x)
    assert terms.alignment is not None
    terms.alignment.backward(retain_graph=True)
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(key.startswith(("backbone.blocks.1", "backbone.blocks.2", "backbone.final")) for key in reached)
    assert any(key.startswith("backbone.blocks.0") for key in reached)
    model.zero_grad()
    terms.total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_validation_and_the_end_of_the_alignment_have_one_time_an_image(batch: Batch) -> None:
    loss, model = build()
    plain = OBJECTIVE.corrupt(batch.x0, batch.noise, batch.t_B)
    with torch.no_grad():
        expected = model.backbone(plain, batch.t_B, batch.condition).prediction_RCHW
        _, output = step_terms(model.eval(), OBJECTIVE, loss, batch, 0, lambda x: x)
        assert torch.equal(output.prediction_RCHW, expected)
        assert output.averaged.keys() == {"block_2"}
        model.train()
        for own, given in ((loss, replace(batch, is_aligned=False)), (build(lambda_max=0.0)[0], batch)):
            _, output = step_terms(model, OBJECTIVE, own, given, 0, lambda x: x)
            assert torch.equal(output.prediction_RCHW, expected)
        _, output = step_terms(model, OBJECTIVE, loss, batch, 0, lambda x: x)
        assert not torch.allclose(output.prediction_RCHW, expected, atol=1e-3)


def test_one_time_for_all_tokens_is_that_of_the_sample(batch: Batch) -> None:
    _, model = build()
    t_Bhw = batch.t_B[:, None, None].expand(-1, 4, 4)
    with torch.no_grad():
        one, each = (model.backbone(batch.x0, t, batch.condition).prediction_RCHW for t in (batch.t_B, t_Bhw))
    torch.testing.assert_close(each, one, atol=1e-5, rtol=1e-4)


def test_the_second_time_has_the_distribution_of_training_times(batch: Batch) -> None:
    """Also that of a lognormal draw: its quantiles."""
    objective, loss = FlowMath("linear", "lognormal"), build()[0]
    u = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    many = replace(batch, draws={OTHER_TIME: u}, t_B=torch.zeros(4000))
    found = loss.other_times(many, objective)
    normal = torch.special.ndtri(torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(found.quantile(torch.tensor([0.1, 0.5, 0.9])), normal.sigmoid(), atol=0.02, rtol=0)


def test_what_does_not_fit_is_refused(batch: Batch, compose: Build) -> None:
    loss, model = build()
    for objective in (FlowDataMath("uniform", 0.05), FlowMath("cosine", "uniform")):
        with pytest.raises(UserError, match=r"for which the prediction must be the same: give objective=flow"):
            step_terms(model, objective, loss, batch, 0, lambda x: x)
    with pytest.raises(UserError, match="which of the backbones only a SiT takes"):
        loss.use_patches(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="are both block_0: give two taps"):
        replace(DECLARED, teacher="block_0").check()
    declared = declaration_of(compose("+experiment=repa_cifar10_cpu", "loss=self_flow")["loss"])
    assert (declared.share, declared.lambda_max) == (0.25, 0.8)
