"""FlexTok: what sees what, how many registers are kept, sizes, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_flextok import DEPTH, PATCHES, REGISTERS, SHAPE, SMALL, WIDTHS
from torch import Tensor

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import IMAGE, KEEP
from urepa.method.heads.mlp_resized import MLPResized
from urepa.models.backbones.flextok import FlexTok
from urepa.models.backbones.flextok_net import FlexTokNetwork, kept_counts
from urepa.models.register_layers import causal_last_mask

TAPS = tuple(f"decoder_block_{k}" for k in range(DEPTH))


def small(shaken: bool = True, **changes: Any) -> FlexTokNetwork:
    """With `shaken` every weight is away from its start, at which the blocks of the decoder do nothing."""
    torch.manual_seed(0)
    network = FlexTok(**(SMALL | changes)).build(latent_shape=SHAPE, num_classes=1, widths=WIDTHS)
    with torch.no_grad():
        for parameter in network.parameters() if shaken else ():
            parameter.normal_(std=0.3)
    return network


def condition_of(x0: Tensor, kept: float = 0.99) -> Condition:
    tokens = x0.flatten(2).transpose(1, 2)
    given = Part.of(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    return Condition({IMAGE: given, KEEP: Part.of(torch.full((len(x0), 1), kept))})


# --- masks ------------------------------------------------------------------------------------------------------


def test_the_mask_is_causal_for_registers_and_open_for_patches() -> None:
    mask = causal_last_mask(2, 3)
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_a_register_does_not_see_later_ones_and_patches_see_patches_alone() -> None:
    """Of the encoder's numbers before they are quantised, and of its patches after the last block."""
    network, x0 = small(), torch.randn(1, *SHAPE)
    seen: dict[str, Tensor] = {}
    network.encoder.blocks[-1].register_forward_hook(lambda _, __, output: seen.update(x=output.detach().clone()))
    network.encoder(x0)
    before = seen["x"]
    for j in range(REGISTERS):
        own = network.encoder.registers.data[j].clone()
        network.encoder.registers.data[j] = torch.randn(16)
        network.encoder(x0)
        network.encoder.registers.data[j] = own
        moved = (seen["x"] - before).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [False] * (PATCHES + j) + [True] * (REGISTERS - j)


def test_every_register_sees_every_patch() -> None:
    network, x0 = small(), torch.randn(1, *SHAPE, requires_grad=True)
    numbers: dict[str, Tensor] = {}
    network.encoder.to_codes.register_forward_hook(lambda _, __, output: numbers.update(z=output))
    network.encoder(x0)
    for k in range(REGISTERS):
        (gradient,) = torch.autograd.grad(numbers["z"][0, k].sum(), x0, retain_graph=True)
        assert (gradient.unfold(2, 2, 2).unfold(3, 2, 2).abs().sum(dim=(0, 1, 4, 5)) > 0).all()


@pytest.mark.parametrize("kept", [1, 3, REGISTERS])
def test_registers_that_are_not_kept_have_no_influence(kept: int) -> None:
    network, x_t, t_B = small(), torch.randn(1, *SHAPE), torch.tensor([0.4])
    codes = torch.randint(64_000, (1, REGISTERS))
    before = network(x_t, t_B, network.condition_of(codes, torch.tensor([kept]))).prediction_RCHW
    for j in range(REGISTERS):
        other = codes.clone()
        other[0, j] = (other[0, j] + 31_999) % 64_000
        found = network(x_t, t_B, network.condition_of(other, torch.tensor([kept]))).prediction_RCHW
        assert torch.equal(found, before) == (j >= kept)


def test_an_image_is_decoded_from_its_codes() -> None:
    """In two steps as in one: the condition in training is the image, outside of it its codes."""
    network, x0, t_B = small(), torch.randn(2, *SHAPE), torch.tensor([0.2, 0.7])
    x_t = torch.randn(2, *SHAPE)
    for kept, u in ((1, 0.0), (4, 0.4), (REGISTERS, 0.999)):
        once = network(x_t, t_B, condition_of(x0, u)).prediction_RCHW
        codes = network.encode(x0)
        assert codes.shape == (2, REGISTERS)
        assert ((codes >= 0) & (codes < 64_000)).all()
        torch.testing.assert_close(
            network(x_t, t_B, network.condition_of(codes, torch.tensor([kept, kept]))).prediction_RCHW, once
        )


# --- nested dropout and null ---------------------------------------------------------------------------------------


def test_numbers_of_kept_registers() -> None:
    u_B = torch.arange(16) / 16
    assert kept_counts(u_B, 8, "uniform").tolist() == [k for k in range(1, 9) for _ in range(2)]
    assert kept_counts(u_B, 8, "powers_of_two").tolist() == [1, 1, 2, 2, *[4] * 4, *[8] * 8]
    assert kept_counts(u_B, 6, "powers_of_two").max() == 6
    assert kept_counts(u_B, 8, "none").tolist() == [8] * 16
    assert kept_counts(torch.tensor([1.0]), 8, "uniform").tolist() == [8]  # as fp32 rounds a draw just below 1


def test_what_is_withheld_is_the_learned_null_and_nothing_of_the_image() -> None:
    network, t_B = small(), torch.tensor([0.5, 0.5])
    x_t = torch.randn(1, *SHAPE).expand(2, -1, -1, -1)
    one, other = network(x_t, t_B, condition_of(torch.randn(2, *SHAPE)).null()).prediction_RCHW
    torch.testing.assert_close(one, other)
    with torch.no_grad():
        network.decoder.null_token.add_(1)
    assert not torch.allclose(network(x_t, t_B, condition_of(torch.randn(2, *SHAPE)).null()).prediction_RCHW[0], one)


@pytest.mark.parametrize("withheld", [[False, False], [True, True]])
def test_every_parameter_is_in_the_graph_of_every_batch(withheld: list[bool]) -> None:
    network = small()
    condition = condition_of(torch.randn(2, *SHAPE)).drop({IMAGE: torch.tensor(withheld)})
    network(torch.randn(2, *SHAPE), torch.rand(2), condition).prediction_RCHW.pow(2).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    null, encoder = network.decoder.null_token.grad, network.encoder.registers.grad
    assert null is not None
    assert encoder is not None
    assert bool(null.any()) == withheld[0]
    assert bool(encoder.any()) != withheld[0]


# --- taps and rows -------------------------------------------------------------------------------------------------


def test_taps_are_the_patches_tokens_of_the_decoder_and_the_graph_goes_through_them() -> None:
    network, x0 = small(), torch.randn(3, *SHAPE)
    inputs = (torch.randn(3, *SHAPE), torch.rand(3), condition_of(x0))
    output = network(*inputs, taps=TAPS)
    for tap in TAPS:
        tokens = output.features[tap]
        assert (tokens.grid, tuple(tokens.x_BND.shape)) == ((2, 3), (3, PATCHES, 24))
        (gradient,) = torch.autograd.grad(output.prediction_RCHW.sum(), tokens.x_BND, retain_graph=True)
        assert gradient.abs().sum(dim=2).gt(0).all()
    rows_R = torch.tensor([2, 0])
    chosen = network(*inputs, taps=TAPS[:1], rows_R=rows_R)
    torch.testing.assert_close(chosen.prediction_RCHW, output.prediction_RCHW[rows_R])
    torch.testing.assert_close(chosen.features[TAPS[0]].x_BND, output.features[TAPS[0]].x_BND)


def test_a_tap_that_is_not_there_is_an_error_with_the_range() -> None:
    for ask in (small().tap_width, FlexTok(**SMALL).check_tap):
        with pytest.raises(UserError, match="no tap 'block_1'; it has decoder_block_0 to decoder_block_2"):
            ask("block_1")


def test_patches_and_registers_have_modulations_of_their_own() -> None:
    network = small()
    inputs = (torch.randn(1, *SHAPE), torch.tensor([0.3]), condition_of(torch.randn(1, *SHAPE)))
    (first,) = [network(*inputs, taps=TAPS[:1]).features[TAPS[0]].x_BND]
    with torch.no_grad():  # the gates and the MLP's part of the registers in the block that precedes the tap
        network.decoder.blocks[0].register_modulation[1].bias[48:].add_(1)
    torch.testing.assert_close(network(*inputs, taps=TAPS[:1]).features[TAPS[0]].x_BND, first)
    with torch.no_grad():
        network.decoder.blocks[0].patch_modulation[1].bias[48:].add_(1)
    assert not torch.allclose(network(*inputs, taps=TAPS[:1]).features[TAPS[0]].x_BND, first)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    inputs = (torch.randn(2, *SHAPE), torch.rand(2), condition_of(torch.randn(2, *SHAPE), 0.5))
    gradients = []
    for recompute in (False, True):
        network = small(gradient_checkpointing=recompute)
        network(*inputs, taps=TAPS[1:2]).prediction_RCHW.pow(2).sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_counts_at_full_size_are_the_formulas() -> None:
    """Width 1152, depth 18, 256 registers, 2x2 patches of 16 channels, 6 numbers a code."""
    d, depth, registers, patch, numbers = 1152, 18, 256, 16 * 4, 6
    block = 4 * d * d + 3 * 3072 * d  # queries, keys, values and output; gate, up and down of width 2/3 * 4 * d
    embed = patch * d + d
    encoder = embed + registers * d + depth * block + (d * numbers + numbers)
    time = (256 * d + d) + (d * d + d)
    modulations = 2 * (6 * d * d + 6 * d)
    head = (2 * d * d + 2 * d) + (d * patch + patch)
    decoder = embed + time + (numbers * d + d) + 2 * d + registers * d + depth * (block + modulations) + head
    published = FlexTok(**(SMALL | {"registers": registers, "head_dim": 64, "mlp_ratio": 2.6667}))
    published.encoder_width = published.decoder_width = d
    published.encoder_depth = published.decoder_depth = depth
    with torch.device("meta"):
        network = published.build_without_weights(latent_shape=(16, 32, 32), num_classes=1, widths={IMAGE: 16, KEEP: 1})
    assert sum(p.numel() for p in network.encoder.parameters()) == encoder
    assert sum(p.numel() for p in network.decoder.parameters()) == decoder
    assert network.encoder.blocks[0].attn.heads == 18


@pytest.mark.parametrize(("hidden", "width", "millions"), [(2048, 2048, 8.7), (None, 4608, 31.3)])
def test_the_projectors_counts_are_the_formulas(hidden: int | None, width: int, millions: float) -> None:
    head = MLPResized(hidden=hidden).build(in_width=1152, out_width=1024)
    count = 1152 * width + width + width * width + width + width * 1024 + 1024
    assert sum(p.numel() for p in head.parameters()) == count
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 3}, "backbone.patch=3 does not divide the 4x6 latent"),
        ({"encoder_width": 20}, "backbone.encoder_width=20: give a multiple of 4 and of backbone.head_dim=8"),
        ({"decoder_width": 28}, "backbone.decoder_width=28"),
        ({"levels": []}, "backbone.levels=\\[\\]: give one or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FlexTok(**(SMALL | changes)).check(SHAPE)


# --- files ---------------------------------------------------------------------------------------------------------


def test_an_export_is_read_again_and_others_are_refused(tmp_path: Path) -> None:
    network = small()
    network.export(tmp_path)
    inputs = (torch.randn(2, *SHAPE), torch.rand(2), condition_of(torch.randn(2, *SHAPE)))
    for place in (tmp_path, tmp_path / "model.safetensors"):
        again = small(shaken=False, weights=str(place))
        assert torch.equal(again(*inputs).prediction_RCHW, network(*inputs).prediction_RCHW)
    with pytest.raises(UserError, match=r"2 of its weights differ by name or shape \(encoder.registers\)"):
        small(weights=str(tmp_path), registers=REGISTERS + 1)
    with pytest.raises(UserError, match="does not exist; give a .safetensors file"):
        small(weights=str(tmp_path / "lost.safetensors"))


def test_fine_tunings_rate_is_refused_on_random_weights() -> None:
    with pytest.raises(UserError, match="optimizer.lr.backbone=1e-06 is a rate for fine-tuning trained weights"):
        FlexTok(**SMALL).check_rate(1e-6)
    FlexTok(**SMALL).check_rate(1e-4)
    FlexTok(**(SMALL | {"weights": "file.safetensors"})).check_rate(1e-6)
