"""The share of cross-attention by part of the condition, against a direct computation from all scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.conditions import Condition, Part
from urepa.core.part_names import CLS, PATCHES, TEXT
from urepa.evaluation.measures import attention_mass_math
from urepa.evaluation.measures.attention_mass_math import recorded_attention
from urepa.models.backbones.nanodit import NanoDiT

LENGTH, WIDTH, HEADS = 5, 16, 2


def network(cls: str = "both", patches: bool = True) -> Any:
    torch.manual_seed(0)
    declared = NanoDiT(
        patch=2, depth=3, width=WIDTH, heads=HEADS, cls=cls, cls_with_time=True, patches=patches,
        patch_positions=False, gradient_checkpointing=False,
    )  # fmt: skip
    built = declared.build(latent_shape=(3, 6, 10), num_classes=1, widths={TEXT: 12, CLS: 10, PATCHES: 6})
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.2)
    return built.eval()


def inputs() -> tuple[Tensor, Tensor, Condition]:
    mask_BL = torch.arange(LENGTH) < torch.tensor([[5], [2]])
    parts = {TEXT: Part.of(torch.randn(2, LENGTH, 12), mask_BL), CLS: Part.of(torch.randn(2, 10))}
    parts[PATCHES] = Part.of_image(torch.randn(2, 6, 6), (2, 3))
    return torch.randn(2, 3, 6, 10), torch.rand(2), Condition(parts)


def softmax_by_token(q_ND: Tensor, k_SD: Tensor, counted: list[bool]) -> list[float]:
    """Mean attention to each token over queries and heads, score by score."""
    total, side = [0.0] * len(k_SD), WIDTH // HEADS
    for own in (slice(0, side), slice(side, WIDTH)):
        for query in q_ND[:, own].double():
            scores = [math.exp(float(query @ key.double()) / math.sqrt(side)) for key in k_SD[:, own]]
            scores = [score * is_counted for score, is_counted in zip(scores, counted, strict=True)]
            total = [so_far + score / sum(scores) for so_far, score in zip(total, scores, strict=True)]
    return [value / (HEADS * len(q_ND)) for value in total]


@pytest.mark.parametrize(("cls", "patches"), [("both", True), ("adaln", False)])
def test_shares_are_those_of_all_scores_and_add_up_to_1(
    cls: str, patches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_mass_math, "QUERIES", 4)  # of 15: three whole parts and a smaller one
    model, (x_t, t_B, condition) = network(cls, patches), inputs()
    seen: list[Tensor] = []
    for attention in model.cross_attentions():
        attention.q.register_forward_hook(lambda _, own, out: seen.append(out))
    with torch.no_grad(), recorded_attention(model) as shares:
        model(x_t, t_B, condition)
        context_BSD = model.global_and_context(t_B, condition)[1]
    lengths = model.context_lengths(condition)
    assert list(lengths.items()) == ([(TEXT, 5), (CLS, 1), (PATCHES, 6)] if patches else [(TEXT, 5)])
    assert sum(lengths.values()) == context_BSD.shape[1]
    assert len(shares) == 3
    for k, (attention, share_BS) in enumerate(zip(model.cross_attentions(), shares, strict=True)):
        torch.testing.assert_close(share_BS.sum(1), torch.ones(2))
        q_BND = seen[2 * k + 1]  # of the forward; the hook of the evaluation runs before it
        with torch.no_grad():
            k_BSD = F.linear(context_BSD, attention.kv.weight[:WIDTH])
        for b, words in enumerate((5, 2)):
            counted = [i < words or i >= LENGTH for i in range(context_BSD.shape[1])]
            torch.testing.assert_close(share_BS[b], torch.tensor(softmax_by_token(q_BND[b], k_BSD[b], counted)))


def test_hooks_are_gone_afterwards() -> None:
    model, own = network(), inputs()
    with torch.no_grad(), recorded_attention(model) as shares:
        model(*own)
    with torch.no_grad():
        model(*own)
    assert len(shares) == 3


@pytest.mark.slow
def test_a_compiled_block_is_recorded_too() -> None:
    model, own = network(), inputs()
    with torch.no_grad(), recorded_attention(model) as plain:
        model(*own)
    for block in model.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        model(*own)
        with recorded_attention(model) as compiled:
            model(*own)
    assert len(compiled) == 3
    torch.testing.assert_close(compiled, plain)
