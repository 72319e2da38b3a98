"""Small U-Nets with the architecture of SD-1.5, SDXL and Kolors: what they have of the family, their sizes, weights in
a local folder, and their conditions."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

from urepa.config.declared import declaration_of
from urepa.config.parts import KINDS
from urepa.core.backbone_protocols import takes_parts
from urepa.core.descriptions import BackboneFacts
from urepa.core.errors import UserError
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.models.unet_families import FAMILIES, family_of_unet

SHAPE = (48, 16, 16)
WIDTHS = {TEXT: 384, POOLED: 96}
KNOWN: dict[str, Any] = {"latent_shape": SHAPE, "num_classes": 2, "widths": WIDTHS}
SMALL = {"sd15_text_tiny": "sd15", "sdxl_tiny": "sdxl", "kolors_tiny": "kolors"}
every = pytest.mark.parametrize("option", SMALL)


def declared_of(compose: Callable[..., Any], option: str, *overrides: str) -> Any:
    return declaration_of(compose(f"backbone={option}", *overrides)["backbone"])


@every
def test_it_is_the_familys_network_at_other_sizes(compose: Callable[..., Any], option: str) -> None:
    """Its config differs from the published one in sizes alone."""
    from diffusers import UNet2DConditionModel

    backbone = declared_of(compose, option).build(**KNOWN)
    own = dict(backbone.unet.config)
    defaults = {name: p.default for name, p in signature(UNet2DConditionModel.__init__).parameters.items()}
    published = defaults | dict(FAMILIES[SMALL[option]].architecture)
    del published["self"]
    assert family_of_unet(own) == SMALL[option]
    sizes = {"sample_size", "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types"}
    sizes |= {"layers_per_block", "attention_head_dim", "cross_attention_dim", "transformer_layers_per_block"}
    sizes |= {"encoder_hid_dim", "projection_class_embeddings_input_dim"}
    assert {name for name in published if published[name] != own[name]} <= sizes
    assert (own["in_channels"], own["block_out_channels"]) == (48, (32, 64, 64))
    # attention as in the family: all but the coarsest resolution of SD-1.5, all but the finest one of SDXL
    ends = slice(0, -1) if SMALL[option] == "sd15" else slice(1, None)
    assert set(own["down_block_types"][ends]) == set(published["down_block_types"][ends]) == {"CrossAttnDownBlock2D"}
    without = declared_of(compose, option).build_without_weights(**KNOWN)
    assert {n: p.shape for n, p in without.named_parameters()} == {n: p.shape for n, p in backbone.named_parameters()}


@every
def test_it_takes_the_texts_of_its_family(compose: Callable[..., Any], option: str) -> None:
    """Layers too, which it does not look at; and so do published ones, of which small ones differ in sizes alone."""
    declared = declared_of(compose, option)
    assert takes_parts(declared, (TEXT, POOLED, LAYERS))
    assert takes_parts(KINDS["backbone"][option.removesuffix("_tiny")], (TEXT, POOLED, LAYERS))
    assert takes_parts(declared, (TEXT,)) == (SMALL[option] == "sd15")
    assert not takes_parts(declared, (POOLED,))
    declared.check_widths({TEXT: 7, POOLED: 5})  # random weights take those of the data


@every
def test_its_export_is_read_and_other_sizes_are_refused(
    compose: Callable[..., Any], tmp_path: Path, option: str
) -> None:
    torch.manual_seed(0)
    backbone = declared_of(compose, option).build(**KNOWN)
    backbone.export(tmp_path)
    here = (f"backbone.weights={tmp_path}",)
    declared = declared_of(compose, option, *here)
    declared.check_widths(WIDTHS)
    again = dict(declared.build(**KNOWN).named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in backbone.named_parameters())
    with pytest.raises(UserError, match=r"takes text of width 384; data\.text_encoder gives 385"):
        declared.check_widths(WIDTHS | {TEXT: 385})
    other = declared_of(compose, option, *here, "backbone.block_out_channels=[32,64,96]")
    with pytest.raises(
        UserError, match=r"block_out_channels=\[32, 64, 64\] in its config.json, .* give \[32, 64, 96\]"
    ):
        other.build(**KNOWN)
    with pytest.raises(UserError, match=r"^backbone.weights=owner/name is no local folder with a U-Net; give one, or "):
        declared_of(compose, option, "backbone.weights=owner/name").build_without_weights(**KNOWN)


def test_sizes_that_do_not_fit_are_refused_and_described(compose: Callable[..., Any]) -> None:
    declared = declared_of(compose, "sdxl_tiny")
    declared.check(SHAPE)
    with pytest.raises(UserError, match="18x16 is not a multiple of 4"):
        declared.check((48, 18, 16))
    with pytest.raises(UserError, match=r"backbone.head_dim=48 does not divide the 64 channels"):
        declared_of(compose, "sdxl_tiny", "backbone.head_dim=48").check(SHAPE)
    facts = BackboneFacts(SHAPE, 2, are_replaced=False)
    text = " ".join(map(str, declared.description(facts)))
    assert "U-Net of Stable Diffusion XL" in text
    assert "3 resolutions have 32, 64 and 64 channels" in text
    assert "in heads 32 wide, acts at 8×8 and 4×4." in text
