"""Latents whose rows and columns change from step to step: backbones that support them, and those that refuse them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from class_ids import of_ids
from tiny_sit import SHAPE, SMALL, small

from urepa.core.errors import UserError
from urepa.method.heads.conv_net import ConvHead
from urepa.method.heads.mlp_net import MLPHead
from urepa.method.training_step import AlignedModel
from urepa.models.backbones.sit import SiT
from urepa.models.backbones.tiny_unet import TinyUNet
from urepa.training.checks.sizes import check_latents

OTHERS = [(3, 6, 4), (3, 8, 10)]


def inputs_of(shape: tuple[int, int, int]) -> tuple[Any, ...]:
    x_t = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    return x_t, torch.tensor([0.2, 0.7]), of_ids(torch.tensor([0, 5]), 5)


@pytest.mark.parametrize("shape", OTHERS)
def test_a_sit_on_other_latents_equals_one_built_for_them(shape: tuple[int, int, int]) -> None:
    """Bit for bit; afterwards its own shape gives unchanged results."""
    ours = small()
    before = ours(*inputs_of(SHAPE)).prediction_RCHW
    theirs = SiT(**SMALL).build(latent_shape=shape, num_classes=5)
    theirs.load_state_dict(ours.state_dict())
    found, expected = (network(*inputs_of(shape), taps=("block_1",)) for network in (ours, theirs))
    assert torch.equal(found.prediction_RCHW, expected.prediction_RCHW)
    assert torch.equal(found.features["block_1"].x_BND, expected.features["block_1"].x_BND)
    assert found.features["block_1"].grid == (shape[1] // 2, shape[2] // 2)
    assert torch.equal(ours(*inputs_of(SHAPE)).prediction_RCHW, before)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_positions_follow_the_weights_type() -> None:
    network = small()
    grid = (3, 5)
    assert network.positions_of(grid) is network.positions_of(grid)
    assert network.to(torch.bfloat16).positions_of(grid).dtype == torch.bfloat16


def test_learned_positions_are_for_one_grid() -> None:
    declared, shapes = SiT(**(SMALL | {"positions": "learned"})), [SHAPE, *OTHERS]
    check_latents(declared, [SHAPE])
    with pytest.raises(UserError, match="^backbone.positions=learned .* shapes 4x6, 6x4, 8x10; give .*=sincos"):
        check_latents(declared, shapes)
    check_latents(SiT(**SMALL), shapes)
    with pytest.raises(AssertionError, match="learned for"):
        small(positions="learned")(*inputs_of(OTHERS[0]))


def test_each_shape_is_checked_and_each_axis_by_itself() -> None:
    unet = TinyUNet(
        block_out_channels=[32, 64, 64],
        attention=[False, False, True],
        layers_per_block=1,
        cross_attention_dim=32,
        head_dim=32,
    )
    check_latents(unet, [(4, 16, 16), (4, 12, 20)])
    for odd in ((4, 12, 18), (4, 18, 12)):
        with pytest.raises(UserError, match=f"but {odd[1]}x{odd[2]} is not a multiple of 4"):
            check_latents(unet, [(4, 16, 16), odd])
    for odd in ((3, 6, 5), (3, 5, 6)):
        with pytest.raises(UserError, match=f"does not divide the {odd[1]}x{odd[2]} latent"):
            check_latents(SiT(**SMALL), [SHAPE, odd])


def test_a_backbone_without_a_declaration_supports_one_shape() -> None:
    own: Any = SimpleNamespace(_target_="mine.Own", check=lambda shape: None)
    check_latents(own, [SHAPE])
    with pytest.raises(UserError, match="^backbone._target_=mine.Own: it takes x0 of one shape a run, .* 4x6, 6x4"):
        check_latents(own, [SHAPE, OTHERS[0]])


def test_heads_are_checked_for_every_shape_before_training() -> None:
    model = AlignedModel(small(), {"block_1": MLPHead(8, in_width=16, out_width=5)})
    at = torch.tensor([0.5]), of_ids(torch.tensor([5]), 5)
    fits: list[Any] = [(SHAPE, {"": (2, 3)}), ((3, 8, 10), {"": (4, 5)})]
    model.check_shapes(fits, *at)
    with pytest.raises(UserError, match="the tap has 3x2 tokens and the teacher 3x3, .*resizes neither"):
        model.check_shapes([*fits, ((3, 6, 4), {"": (3, 3)})], *at)
    resizes = AlignedModel(small(), {"block_1": ConvHead(1, "after", in_width=16, out_width=5)})
    resizes.check_shapes([((3, 6, 4), {"": (3, 3)})], *at)
