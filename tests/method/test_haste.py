"""HASTE: the attention loss against its formula entry by entry, what a SiT attends by, and where gradients go."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.descriptions import Formula
from urepa.core.errors import UserError
from urepa.core.types import Attention
from urepa.method.losses.haste import Haste
from urepa.method.losses.haste_math import attention_loss
from urepa.method.schedules.constant import Constant
from urepa.models.backbones.sit_net import SiTNetwork


def attention(heads: int, seed: int, samples: int = 2, tokens: int = 3) -> Attention:
    random = torch.Generator().manual_seed(seed)
    q_BANE, k_BANE = (torch.randn(samples, heads, tokens, 5, generator=random) for _ in range(2))
    return Attention(q_BANE, k_BANE, 5**-0.5)


def shares(own: Attention, sample: int, head: int, query: int) -> list[float]:
    """A softmax in double precision, written out."""
    q, k = own.q_BANE[sample, head, query].tolist(), own.k_BANE[sample, head].tolist()
    weights = [math.exp(own.scale * sum(x * y for x, y in zip(q, key, strict=True))) for key in k]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(("heads", "compared"), [(None, 3), (2, 2)])
def test_the_attention_loss_is_the_cross_entropy_of_the_first_heads(heads: int | None, compared: int) -> None:
    student, teacher = attention(4, seed=0), attention(3, seed=1)
    expected = []
    for sample in range(2):
        terms = [
            -sum(
                p * math.log(q)
                for p, q in zip(shares(teacher, sample, a, m), shares(student, sample, a, m), strict=True)
            )
            for a in range(compared)
            for m in range(3)
        ]
        expected.append(sum(terms) / len(terms))
    assert attention_loss(student, teacher, heads).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_attention_loss_is_smallest_at_the_teachers_own_attention() -> None:
    teacher, other = attention(2, seed=0), attention(2, seed=1)
    student = other.map(lambda x: x.clone().requires_grad_())
    assert bool((attention_loss(teacher, teacher) < attention_loss(student, teacher)).all())
    own = teacher.map(lambda x: x.clone().requires_grad_())
    attention_loss(own, teacher).sum().backward()
    assert own.q_BANE.grad is not None
    assert own.q_BANE.grad.abs().max() < 1e-6


def sit(qk_norm: bool = False) -> SiTNetwork:
    torch.manual_seed(0)
    network = SiTNetwork((3, 8, 8), 3, patch=2, depth=4, width=16, heads=2, qk_norm=qk_norm, positions="sincos")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def inputs() -> tuple[Tensor, Tensor, Condition]:
    random = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 3, 8, 8, generator=random),
        torch.tensor([0.2, 0.7]),
        Condition.of_classes(torch.tensor([0, 2])),
    )


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_sit_hands_out_what_it_attends_by_and_computes_the_same(qk_norm: bool) -> None:
    """The maps times the values, through the output layer, are what the block's attention returns."""
    network, arguments = sit(qk_norm), inputs()
    seen: dict[str, Tensor] = {}
    module: Any = network.blocks[1].attn
    module.register_forward_hook(lambda _, given, out: seen.update(x=given[0].detach(), out=out.detach()))
    plain = network(*arguments, ("block_1",))
    asked = network(*arguments, ("block_1",), attention=("block_1", "block_0"))
    assert torch.equal(asked.prediction_RCHW, plain.prediction_RCHW)
    assert torch.equal(asked.features["block_1"].x_BND, plain.features["block_1"].x_BND)
    assert plain.attention == {}
    assert set(asked.attention) == {"block_0", "block_1"}
    own = asked.attention["block_1"]
    maps = torch.softmax(own.scale * own.q_BANE @ own.k_BANE.mT, dim=-1)
    v_BANE = module.qkv(seen["x"]).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)[2]
    by_hand = module.proj((maps @ v_BANE).transpose(1, 2).flatten(2))
    torch.testing.assert_close(by_hand, seen["out"], rtol=1e-4, atol=1e-5)
    none = network(*arguments, (), torch.empty(0, dtype=torch.long), ("block_2",))
    assert none.attention["block_2"].q_BANE.shape == (2, 2, 16, 8), "of all samples, if none is predicted"


def test_the_attention_loss_reaches_queries_and_keys_and_what_precedes_them() -> None:
    network = sit()
    own = network(*inputs(), attention=("block_1",)).attention["block_1"]
    attention_loss(own, attention(2, seed=3, tokens=16)).mean().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {"x_embedder.proj.weight", "blocks.0.mlp.fc2.weight", "blocks.1.attn.qkv.weight"} <= reached
    assert not any(name.startswith(("blocks.2", "blocks.3", "final_layer", "blocks.1.mlp")) for name in reached)
    gradient = network.blocks[1].attn.qkv.weight.grad  # type: ignore[union-attr]
    assert not bool(gradient[32:].any()), "values are not attended by"  # type: ignore[index]


def haste(**settings: Any) -> Haste:
    given: dict[str, Any] = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 0.0, "level": "token"}
    given |= {"taps": {"block_1": 1.0}, "spike_threshold": 0.1, "attention": {"block_0": 1}}
    return Haste(**given | settings)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"loss\.attention: give at least one tap"):
        haste(attention={}).build(schedule=Constant(), max_steps=10)
    with pytest.raises(UserError, match="compared with that of one teacher"):
        haste().check_teachers(["a", "b"])


def test_the_description_names_the_pairs_and_their_weight() -> None:
    blocks = haste(attention_weight=2.0).description(schedule=Constant(), max_steps=10)
    (sentence,) = (text for text in blocks if isinstance(text, str) and "block_0 with the teacher's 1" in text)
    assert "a = 2" in sentence
    assert any(isinstance(one, Formula) and r"+ a\, \mathcal{L}_{\mathrm{attn}}" in one.latex for one in blocks)
