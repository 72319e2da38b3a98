"""At λ = 0 every head leaves the backbone as `loss=none` does, bit for bit: its gradient has the layout of the
backbone's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from urepa.core.types import Tokens
from urepa.method.gradient_layout import with_gradient_in_own_layout

HEADS = ("conv", "repa_mlp_small", "irepa", "irepa_hidden", "layer_norm_linear")
DATA = ["data.limit=40", "data.validation_images=20", "data.test_images=20", "evaluation=none", "tracking=none"]
TRAINER = ["trainer.batch_size=8", "trainer.validation_group=10", "trainer.max_steps=3"]
TEACHER = ["teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]"]
BACKBONES = {
    "unet": ["backbone.block_out_channels=[32,32,32]", "backbone.cross_attention_dim=32"],
    "sit": [
        *("+experiment=repa_cifar10_cpu", "data=digits", "data.image_size=16", "data.unshuffle=1"),
        *("trainer.evaluate_every=null", "backbone.depth=3", "backbone.width=32", "backbone.heads=2"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_head_changes_the_backbone_at_a_lambda_of_0(
    trainer_of: Callable[..., Any], tmp_path: Path, backbone: str
) -> None:
    base = [*BACKBONES[backbone], f"data.root={tmp_path}", *DATA, *TRAINER]

    def trained(*overrides: str) -> dict[str, Tensor]:
        trainer = trainer_of(*base, *overrides)
        for i in range(3):  # the learning rate of the first is 0
            trainer.update(i, trainer.reader.read(i), with_tap_gradients=False)
        return {k: v.detach().clone() for k, v in trainer.model.backbone.named_parameters()}

    expected = trained("loss=none")
    for head in HEADS:
        found = trained(*TEACHER, "loss.lambda_max=0", "loss.warmup_steps=0", f"head={head}")
        assert all(torch.equal(found[k], expected[k]) for k in expected), head


@pytest.mark.parametrize("of_map", [False, True])
def test_a_gradient_has_the_layout_of_the_backbones_own(of_map: bool) -> None:
    """Tokens of a map: the map's. Others: contiguous, also where the tokens themselves are not."""
    map_BDhw = torch.rand(2, 3, 2, 4, requires_grad=True)
    tokens = Tokens.from_map(map_BDhw) if of_map else Tokens.from_map(map_BDhw.detach())
    x_BND = tokens.x_BND if of_map else (tokens.x_BND + 0).requires_grad_()
    assert not x_BND.is_contiguous()
    strides: list[tuple[int, ...]] = []
    given = torch.rand(8, 2, 3).transpose(0, 1)
    out = with_gradient_in_own_layout(x_BND)
    assert torch.equal(out, x_BND)
    leaf = map_BDhw if of_map else x_BND
    leaf.register_hook(lambda gradient: strides.append(gradient.stride()))
    out.backward(given)
    assert strides == [map_BDhw.stride() if of_map else (24, 3, 1)]
    expected = given.transpose(1, 2).unflatten(2, (2, 4)) if of_map else given
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected)
