"""The U-Net on captions: diffusers' own prediction, masked tokens without effect, and a null that is always in the
graph.

Shapes: B batch, L positions, D and P widths of tokens and vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import overrides
from torch import Tensor

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import POOLED, TEXT
from urepa.core.types import no_rows
from urepa.models.backbones.text_unet_net import TextUNet, text_unet
from urepa.training.checks.sizes import check_shapes

SMALL: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "attention": [False, True],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "head_dim": 16,
    "latent_shape": (4, 8, 16),
}
WIDTHS = {TEXT: 24, POOLED: 20}


@pytest.fixture(scope="module")
def backbone() -> TextUNet:
    torch.manual_seed(0)
    return text_unet(**SMALL, widths=WIDTHS)


def text(tokens_BLD: Tensor, mask_BL: Tensor, pooled_BP: Tensor) -> Condition:
    return Condition({TEXT: Part.of(tokens_BLD, mask_BL), POOLED: Part.of(pooled_BP)})


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Condition]:
    """Three samples, of 5, 3 and 1 tokens."""
    torch.manual_seed(1)
    mask_BL = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    condition = text(torch.randn(3, 5, 24), mask_BL, torch.randn(3, 20))
    return torch.randn(3, 4, 8, 16), torch.tensor([0, 500, 999]), condition


@pytest.mark.parametrize("widths", [WIDTHS, {TEXT: 32, POOLED: 32}])
def test_the_prediction_is_diffusers_own(inputs: Any, widths: dict[str, int]) -> None:
    """Also if the tokens are as wide as cross-attention, so that they are not projected."""
    torch.manual_seed(0)
    backbone = text_unet(**SMALL, widths=widths)
    assert (backbone.unet.encoder_hid_proj is None) == (widths[TEXT] == 32)
    x_t, t_B, condition = inputs
    part = condition[TEXT]
    tokens, pooled = torch.randn(3, 5, widths[TEXT]), torch.randn(3, widths[POOLED])
    ours = backbone(x_t, t_B, text(tokens, part.mask_BL, pooled), taps=("mid",)).prediction_RCHW
    theirs = backbone.unet(x_t, t_B, tokens, class_labels=pooled, encoder_attention_mask=part.mask_BL).sample
    assert torch.equal(ours, theirs)


def test_a_masked_token_has_no_effect_and_a_given_one_does(backbone: TextUNet, inputs: Any) -> None:
    x_t, t_B, condition = inputs
    part = condition[TEXT]
    before = backbone(x_t, t_B, condition).prediction_RCHW
    for where, moved in ((~part.mask_BL, [False] * 3), (part.mask_BL, [True] * 3)):
        tokens = torch.where(where.unsqueeze(2), 100.0, part.tokens_BLD)
        after = backbone(x_t, t_B, text(tokens, part.mask_BL, condition[POOLED].vector_BD)).prediction_RCHW
        assert [not torch.equal(a, b) for a, b in zip(after, before, strict=True)] == moved


def test_the_pooled_vector_matters(backbone: TextUNet, inputs: Any) -> None:
    x_t, t_B, condition = inputs
    other = text(condition[TEXT].tokens_BLD, condition[TEXT].mask_BL, condition[POOLED].vector_BD.flip(0))
    differs = backbone(x_t, t_B, condition).prediction_RCHW != backbone(x_t, t_B, other).prediction_RCHW
    assert differs[0].any()
    assert differs[2].any()
    assert not differs[1].any()


def test_a_withheld_caption_is_the_null_token_and_vector(backbone: TextUNet, inputs: Any) -> None:
    """Whatever the caption: as if it consisted of the learned token alone."""
    x_t, t_B, condition = inputs
    dropped = condition.drop({TEXT: torch.tensor([True, False, True])})
    ours = backbone(x_t, t_B, dropped).prediction_RCHW
    tokens = backbone.null_D.expand(3, 1, -1)
    null = text(tokens, torch.ones(3, 1, dtype=torch.bool), backbone.null_P.expand(3, -1))
    expected = backbone(x_t, t_B, null).prediction_RCHW
    torch.testing.assert_close(ours[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-5)
    assert torch.equal(ours[1], backbone(x_t, t_B, condition).prediction_RCHW[1])
    assert torch.equal(ours[[0, 2]], backbone(x_t, t_B, condition.null()).prediction_RCHW[[0, 2]])


@pytest.mark.parametrize("all_given", [True, False])
def test_every_parameter_has_a_gradient_at_every_step(backbone: TextUNet, inputs: Any, all_given: bool) -> None:
    """DistributedDataParallel requires it; the null's gradient is 0 if every caption is given."""
    x_t, t_B, condition = inputs
    condition = condition if all_given else condition.null()
    gradients = torch.autograd.grad(
        backbone(x_t, t_B, condition).prediction_RCHW.pow(2).sum(), list(backbone.parameters())
    )
    assert all(g is not None for g in gradients)
    found = dict(zip((name for name, _ in backbone.named_parameters()), gradients, strict=True))
    assert bool(found["null_D"].any()) is bool(found["null_P"].any()) is not all_given


def test_taps_and_rows_are_those_of_the_whole(backbone: TextUNet, inputs: Any) -> None:
    x_t, t_B, condition = inputs
    whole = backbone(x_t, t_B, condition, taps=("mid", "dec_first"))
    some = backbone(x_t, t_B, condition, taps=("mid", "dec_first"), rows_R=torch.tensor([2, 0]))
    torch.testing.assert_close(some.prediction_RCHW, whole.prediction_RCHW[[2, 0]], rtol=1e-4, atol=1e-5)
    none = backbone(x_t, t_B, condition, taps=("mid",), rows_R=no_rows(x_t.device))
    assert torch.equal(none.features["mid"].x_BND, whole.features["mid"].x_BND)


def test_the_condition_trains_before_every_tap(backbone: TextUNet) -> None:
    torch.manual_seed(0)
    frozen = text_unet(**SMALL, widths=WIDTHS)
    frozen.freeze_after(("mid",))
    own = ("null_D", "null_P", "unet.encoder_hid_proj", "unet.class_embedding")
    trains = {name: p.requires_grad for name, p in frozen.named_parameters() if name.startswith(own)}
    assert len(trains) == 8
    assert all(trains.values())


@pytest.mark.slow
def test_a_backbone_of_other_conditions_is_refused(compose: Callable[..., Any], tmp_path: Path) -> None:
    """In both directions, by the declarations alone."""
    both = overrides(tmp_path / "images", tmp_path / "data", tmp_path / "clip", "data.num_classes=2")
    check_shapes(compose(*both))
    wrong = [o for o in both if o != "backbone=text_unet"]
    with pytest.raises(UserError, match=r"TinyUNet is conditioned on class, and .* text, text.pooled; choose"):
        check_shapes(compose(*wrong))
    with pytest.raises(UserError, match=r"TextUNet is conditioned on text, text.pooled, and .* have class; choose"):
        check_shapes(compose("backbone=text_unet"))
    with pytest.raises(UserError, match="attention is false at all resolutions"):
        check_shapes(compose(*both, "backbone.attention=[false,false]"))


def test_a_condition_without_one_of_its_parts_is_refused(backbone: TextUNet, inputs: Any) -> None:
    x_t, t_B, condition = inputs
    with pytest.raises(AssertionError, match=r"no part 'text\.pooled'"):
        backbone(x_t, t_B, replace(condition, parts={TEXT: condition[TEXT]}))


@torch.no_grad()
def test_the_learned_null_is_used_whatever_null_the_condition_has(backbone: TextUNet, inputs: Any) -> None:
    """Bit for bit: with some samples withheld, and with all."""
    x_t, t_B, plain = inputs
    mask_L, nulls = torch.tensor([True, False, False, False, False]), (torch.randn(5, 24), torch.randn(20))
    handed = Condition(
        {
            TEXT: Part.of(plain[TEXT].tokens_BLD, plain[TEXT].mask_BL, nulls[0], mask_L),
            POOLED: Part.of(plain[POOLED].vector_BD, None, nulls[1]),
        }
    )
    for where_B in (torch.tensor([True, False, True]), torch.ones(3, dtype=torch.bool)):
        expected = backbone(x_t, t_B, plain.drop({TEXT: where_B})).prediction_RCHW
        assert torch.equal(backbone(x_t, t_B, handed.drop({TEXT: where_B})).prediction_RCHW, expected)
