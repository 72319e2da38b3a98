"""Tokens of an earlier block of a vision transformer, and the families DINO and I-JEPA, compared with the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.teachers.vit import ViT
from urepa.models.teachers.vit_net import FAMILIES, ViTNetwork

WIDTH, SIDE, PATCH, DEPTH = 32, 4, 14, 3
LAYERS = {"dinov2": "encoder.layer", "dinov3": "model.layer", "siglip": "encoder.layers"}


def saved(family: str, folder: Path) -> Any:
    """A small random network of the family, saved as the hub has it."""
    shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 64}
    own = FAMILIES[family]
    model_class = getattr(transformers, own.model_class)
    torch.manual_seed(0)
    config = model_class.config_class(**shape, patch_size=PATCH, image_size=PATCH * SIDE)
    model = model_class(config, **own.options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model.eval()


def teacher(family: str, folder: Path, **changes: Any) -> ViTNetwork:
    rule = "meta" if family == "dinov2" else None
    return ViTNetwork(family, str(folder), PATCH * SIDE, PATCH, [SIDE, SIDE], WIDTH, rule, **changes)


def pixels(family: str, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in FAMILIES[family].normalisation)
    return (images - mean) / std


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("block", [0, DEPTH - 1])
def test_a_blocks_tokens_are_its_output(family: str, block: int, tmp_path: Path) -> None:
    """As a hook on the block sees it: before the last LayerNorm, also of the last block."""
    reference, seen = saved(family, tmp_path), []
    layers = reference.get_submodule(LAYERS[family])
    layers[block].register_forward_hook(
        lambda _m, _i, output: seen.append(output if torch.is_tensor(output) else output[0])
    )
    images = torch.rand(2, 3, PATCH * SIDE, PATCH * SIDE)
    with torch.no_grad():
        last = reference(pixels(family, images)).last_hidden_state
    prefix = last.shape[1] - SIDE * SIDE
    found = teacher(family, tmp_path, block=block).tokens(images).x_BND
    torch.testing.assert_close(found, F.normalize(seen[0][:, prefix:], dim=-1), atol=2e-5, rtol=0)
    assert not torch.allclose(found, F.normalize(last[:, prefix:], dim=-1), atol=0.05)


def test_a_blocks_tokens_have_a_store_of_their_own(tmp_path: Path) -> None:
    saved("dinov2", tmp_path)
    one = teacher("dinov2", tmp_path, block=1, cls_weight=0.2, unit_length=False).manifest()
    assert (one["model"], one["block"]) == (f"{tmp_path.name}-block1-cls0.2-raw", 1)
    assert "block" not in teacher("dinov2", tmp_path).manifest()
    with pytest.raises(UserError, match=r"teacher\.block=3: the last block of teacher\.model=.* is 2"):
        _ = teacher("dinov2", tmp_path, block=DEPTH).network


@pytest.mark.parametrize(("family", "prefix"), [("dino", 1), ("ijepa", 0)])
def test_the_other_families_tokens_are_the_librarys(family: str, prefix: int, tmp_path: Path) -> None:
    """At the native size and, with resampled positions, at another; the digest of the weights does not change."""
    reference = saved(family, tmp_path)
    for side in (SIDE, SIDE + 2):
        images = torch.rand(2, 3, PATCH * side, PATCH * side)
        own = ViTNetwork(family, str(tmp_path), PATCH * side, PATCH, [side, side], WIDTH)
        with torch.no_grad():
            hidden = reference(pixels(family, images), interpolate_pos_encoding=True).last_hidden_state
        assert hidden.shape[1] == side * side + prefix
        torch.testing.assert_close(own.tokens(images).x_BND, F.normalize(hidden[:, prefix:], dim=-1), atol=2e-5, rtol=0)
    digests = {teacher(family, tmp_path).weights_sha256() for _ in range(2)}
    assert len(digests) == 1
    teacher(family, tmp_path).build_without_weights()


def test_i_jepa_has_no_class_token() -> None:
    own: dict[str, Any] = {"model": "a/m", "image_size": 56, "patch": 14, "grid": [4, 4], "width": 32}
    with pytest.raises(UserError, match=r"teacher\.family=ijepa has no class token"):
        ViT(family="ijepa", **own, cls_weight=0.2).check()
    ViT(family="dino", **own, cls_weight=0.2).check()
