"""Declarations of adapters, and of training without them, agree with what is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from urepa.config.declared import declaration_of
from urepa.config.own_package import _members
from urepa.config.parts import KINDS
from urepa.core.backbone_protocols import LoRA
from urepa.core.descriptions import Formula
from urepa.core.errors import UserError
from urepa.models.backbones.tiny_unet import TinyUNet

UNET: Any = TinyUNet(
    block_out_channels=[32, 64], attention=[False, True], layers_per_block=1, cross_attention_dim=16, head_dim=32
)
ADAPTERS = {"rank": 2, "alpha": 4, "dropout": 0.1, "targets": "attention", "blocks": "mid"}
SIT = {"patch": 2, "depth": 2, "width": 8, "heads": 2, "qk_norm": False, "positions": "sincos"}
SETTINGS: dict[str, dict[str, Any]] = {"adapters": ADAPTERS, "no_lora": {}}


def declared(name: str, **changes: Any) -> Any:
    cls: Any = KINDS["lora"][name]
    return declaration_of({"_target_": cls._target_, **SETTINGS[name], **changes})


def built(lora: Any) -> Any:
    torch.manual_seed(0)
    backbone = UNET.build(latent_shape=(4, 8, 8), num_classes=3)
    lora.build(backbone)
    return backbone


@pytest.mark.parametrize("name", SETTINGS)
def test_a_declaration_has_all_methods_of_the_protocol(name: str) -> None:
    lora = declared(name)
    assert not {member for member in _members(LoRA) if not hasattr(lora, member)}
    lora.check(UNET)
    trained = {n: p for n, p in built(lora).named_parameters() if p.requires_grad}
    assert trained
    assert all(("lora" in parameter) == lora.has_adapters for parameter in trained)
    text = lora.description(sum(p.numel() for p in trained.values()), len(trained))
    assert str(text[0]).endswith(".")
    assert lora.trained("U-Net").endswith(" was trained")


def test_every_option_has_a_case() -> None:
    assert SETTINGS.keys() == KINDS["lora"].keys()


def test_without_adapters_everything_trains() -> None:
    lora = declared("no_lora")
    backbone = built(lora)
    assert all(p.requires_grad for p in backbone.parameters())
    assert (lora.group, lora.tag, lora.trained("U-Net")) == ("backbone", "none", "The whole U-Net was trained")


def test_adapters_are_those_that_the_backbone_derives_from_their_settings() -> None:
    """In the middle block with 64 channels: query, key, value and output of two attentions, one of them over text of
    width 16."""
    lora = declared("adapters")
    trained = [(n, p) for n, p in built(lora).named_parameters() if p.requires_grad]
    assert all(".mid_block." in n for n, _ in trained)
    within, across = 4 * 2 * (64 + 64), 2 * 2 * (64 + 64) + 2 * 2 * (64 + 16)
    assert sum(p.numel() for _, p in trained) == within + across
    assert (lora.group, lora.tag) == ("lora", "2")
    text, formula = lora.description(within + across, 16)
    assert "rank r = 2 and α = 4, scale 2, stand beside the query, key, value and output projections" in str(text)
    assert f"in the middle block with dropout 0.1 on their input: {within + across:,} parameters in 16 " in str(text)
    assert isinstance(formula, Formula)
    assert lora.trained("U-Net") == "LoRA of rank 2 (attention, blocks: mid) was trained"
    as_rank = declared("adapters", alpha=None, targets="attention_conv", blocks="all", dropout=0.0)
    assert "r = 2 and α = 2, scale 1," in str(as_rank.description(1, 1)[0])
    assert "every residual block in every block: 1 parameters" in str(as_rank.description(1, 1)[0])
    assert as_rank.trained("") == r"LoRA of rank 2 (attention\_conv, blocks: all) was trained"


@pytest.mark.parametrize(
    ("changes", "kind", "scale", "formula"),
    [
        ({"use_rslora": True}, "rank-stabilised LoRA", "2.828", r"W' = W + \frac{\alpha}{\sqrt{r}}\, B A"),
        ({"use_dora": True}, "DoRA", "2", r"V = W + \frac{\alpha}{r}\, B A"),
        (
            {"use_rslora": True, "use_dora": True},
            "rank-stabilised DoRA",
            "2.828",
            r"V = W + \frac{\alpha}{\sqrt{r}}\, B A",
        ),
    ],
)
def test_other_kinds_of_adapters(changes: dict[str, bool], kind: str, scale: str, formula: str) -> None:
    """The result in peft: the scale, and for DoRA a length for each row of an adapted weight."""
    lora = declared("adapters", **changes)
    backbone = built(lora)
    layer = backbone.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    assert layer.scaling["default"] == pytest.approx(float(scale), rel=1e-3)
    lengths = [p for name, p in backbone.named_parameters() if "magnitude" in name]
    assert len(lengths) == (8 if lora.use_dora else 0)
    if lengths:
        rows = layer.base_layer.weight.norm(dim=1)
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, rows)
    text, shown = lora.description(1, 1)
    assert f"Low-rank adapters ({kind}) of rank r = 2 and α = 4, scale {scale}, stand" in str(text)
    assert ("the lengths m of the adapted weights' rows train too" in str(text)) is lora.use_dora
    assert isinstance(shown, Formula)
    assert shown.latex.endswith(formula)
    assert lora.trained("U-Net").startswith(f"{kind} of rank 2 (")


def test_a_backbone_refuses_missing_targets_and_adapters_without_effect() -> None:
    sit: Any = KINDS["backbone"]["sit"]
    with pytest.raises(UserError, match="^lora on a SiT of random weights would train nothing: give"):
        declared("adapters", blocks="all").check(sit(weights="random", **SIT))
    declared("adapters", blocks="all").check(sit(weights="sit.pt", **SIT))
    with pytest.raises(UserError, match="^lora.targets=attention lora.blocks=mid: a transformer has neither"):
        declared("adapters").check(sit(weights="sit.pt", **SIT))
