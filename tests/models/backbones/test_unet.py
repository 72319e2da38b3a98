"""Taps do not change the prediction, which equals diffusers' own bit for bit, and their gradients are the true ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from class_ids import ids_of, of_ids
from torch import Tensor, nn

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.models.backbones.backbone_sizes import UNET_TAPS as TAPS
from urepa.models.backbones.unet_net import UNet, tiny_unet

SMALL = {
    "block_out_channels": [32, 64],
    "attention": [False, True],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "head_dim": 16,
    "latent_shape": (4, 8, 16),
    "num_classes": 3,
}


@pytest.fixture(scope="module")
def backbone() -> UNet:
    torch.manual_seed(0)
    return tiny_unet(**SMALL)


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Condition]:
    torch.manual_seed(1)
    return torch.randn(3, 4, 8, 16), torch.tensor([0, 500, 999]), of_ids(torch.tensor([0, 2, 3]), null_id=3)


def diffusers_alone(backbone: UNet, inputs: tuple[Tensor, Tensor, Condition]) -> Tensor:
    x_t, t_B, condition = inputs
    return backbone.unet(x_t, t_B, encoder_hidden_states=backbone.embedding_KLE[ids_of(condition, 3)]).sample


@pytest.mark.parametrize("taps", [(), ("mid",), ("enc_last",), ("dec_first",), TAPS])
def test_taps_leave_the_prediction_diffusers_own(backbone: UNet, inputs: Any, taps: tuple[str, ...]) -> None:
    denoised = backbone(*inputs, taps=taps)
    assert tuple(denoised.features) == tuple(tap for tap in ("enc_last", "mid", "dec_first") if tap in taps)
    assert torch.equal(denoised.prediction_RCHW, diffusers_alone(backbone, inputs))


def test_taps_have_their_grids_and_widths(backbone: UNet, inputs: Any) -> None:
    features = backbone(*inputs, taps=TAPS).features
    assert {tap: (*f.grid, f.x_BND.shape[-1]) for tap, f in features.items()} == {
        "enc_last": (4, 8, 64),
        "mid": (4, 8, 64),
        "dec_first": (8, 16, 64),
    }
    assert all(backbone.tap_width(tap) == f.x_BND.shape[-1] for tap, f in features.items())


@pytest.mark.parametrize("tap", TAPS)
def test_a_taps_state_and_gradient_are_those_of_a_plain_hook(backbone: UNet, inputs: Any, tap: str) -> None:
    """The reference keeps the block's own output in an unchanged forward pass of diffusers."""
    unet = backbone.unet
    block: nn.Module = {"mid": unet.mid_block, "enc_last": unet.down_blocks[1], "dec_first": unet.up_blocks[0]}[tap]
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(keep)
    reference = torch.autograd.grad(diffusers_alone(backbone, inputs).pow(2).sum(), seen[0])[0]
    handle.remove()

    for taps in ((tap,), TAPS):
        denoised = backbone(*inputs, taps=taps)
        feature = denoised.features[tap]
        assert torch.equal(feature.to_map(), seen[0])
        gradient = torch.autograd.grad(denoised.prediction_RCHW.pow(2).sum(), feature.x_BND)[0]
        assert gradient.abs().max() > 0
        gradient_map = gradient.transpose(1, 2).unflatten(2, feature.grid)
        torch.testing.assert_close(gradient_map, reference, rtol=1e-5, atol=1e-7)


def test_weights_get_the_same_gradients_with_and_without_taps(backbone: UNet, inputs: Any) -> None:
    parameters = list(backbone.parameters())
    losses = (backbone(*inputs, taps=taps).prediction_RCHW.pow(2).sum() for taps in ((), TAPS))
    plain, tapped = (torch.autograd.grad(loss, parameters) for loss in losses)
    assert all(torch.equal(a, b) for a, b in zip(plain, tapped, strict=True))


def test_no_hook_stays_behind(backbone: UNet, inputs: Any) -> None:
    backbone(*inputs, taps=TAPS)
    with pytest.raises(UserError):
        backbone(*inputs, taps=("mid", "nowhere"))
    assert not any(module._forward_hooks for module in backbone.modules())


def test_a_missing_tap_is_an_error_that_names_the_others(backbone: UNet, inputs: Any) -> None:
    with pytest.raises(UserError, match="no tap 'midd'; it has mid, enc_last, dec_first"):
        backbone(*inputs, taps=("midd",))
    with pytest.raises(UserError, match="midd"):
        backbone.tap_width("midd")


def test_the_condition_and_the_timestep_matter(backbone: UNet, inputs: Any) -> None:
    x_t, t_B, condition = inputs
    prediction = backbone(x_t, t_B, condition).prediction_RCHW
    null = backbone(x_t, t_B, condition.null()).prediction_RCHW
    differs = [not torch.equal(a, b) for a, b in zip(prediction, null, strict=True)]
    assert differs == [True, True, False]  # the third is null already
    assert not torch.equal(backbone(x_t, t_B.flip(0), condition).prediction_RCHW[0], prediction[0])


def test_the_tiny_unets_embedding_trains_and_a_frozen_one_is_not_a_parameter(backbone: UNet) -> None:
    assert backbone.embedding_KLE.shape == (4, 1, 32)
    assert "embedding_KLE" in dict(backbone.named_parameters())
    frozen = UNet(nn.Identity(), torch.zeros(4, 1, 32))
    assert not list(frozen.parameters())
    assert not frozen.state_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention": [True]}, "backbone.attention has 1 entries"),
        ({"latent_shape": (4, 7, 8)}, "7x8 is not a multiple of 2"),
        ({"block_out_channels": [32, 48]}, "multiple of 32"),
    ],
)
def test_shapes_that_do_not_fit_are_user_errors(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_unet(**(SMALL | change))
