"""Files of DINO and MoCo-v3 as their authors publish them give the tokens of their own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import metas
import pytest
import torch
import torch.nn.functional as F

from urepa.core.errors import UserError
from urepa.models.teachers.dino.plain_vit_files import MISSPELT, PREFIX, _state
from urepa.models.teachers.vit_net import IMAGENET, ViTNetwork

SIDE, PATCH = 4, 14
CASES = [("dino", 128, 2), ("mocov3", 96, 12)]  # width, and the heads that its family has at it


def weights_of(width: int) -> metas.State:
    """Of two blocks, without DINOv2's scales and mask."""
    state = metas.state("dinov2", width, False, trained=SIDE)
    return {name: tensor for name, tensor in state.items() if ".ls" not in name and name != "mask_token"}


def stored(family: str, weights: metas.State) -> dict[str, Any]:
    """As the file holds it. MoCo-v3's has the momentum encoder and the projector too."""
    if family == "dino":
        return dict(weights)
    own = {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}
    own |= {f"module.momentum_encoder.{name}": tensor + 1 for name, tensor in weights.items()}
    own |= {f"{PREFIX}head.0.weight": torch.ones(3, 3)}
    return {"epoch": 300, "arch": "vit_base", "state_dict": own}


@pytest.mark.parametrize(("family", "width", "heads"), CASES)
def test_tokens_are_those_of_the_published_forward_pass(family: str, width: int, heads: int, tmp_path: Path) -> None:
    weights = weights_of(width)
    path = tmp_path / ("m.pth" if family == "dino" else "m.pth.tar")
    torch.save(stored(family, weights), path)
    ours = ViTNetwork(family, str(path), PATCH * SIDE, PATCH, [SIDE, SIDE], width)
    images = torch.rand(2, 3, PATCH * SIDE, PATCH * SIDE)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET)
    scales = {f"blocks.{b}.ls{i}.gamma": torch.ones(width) for b in (0, 1) for i in (1, 2)}
    expected = metas.tokens(weights | scales, (images - mean) / std, heads, weights["pos_embed"])
    torch.testing.assert_close(ours.tokens(images).x_BND.double(), F.normalize(expected, dim=-1), atol=5e-5, rtol=0)


def test_misspelt_names_are_mended() -> None:
    weights = weights_of(96)
    odd = {"blocks.13.norm13.weight": torch.ones(1), "blocks.14.mlp.fc14.bias": torch.zeros(1)}
    state = _state(stored("mocov3", weights | odd), Path("x"), "mocov3")
    assert {"blocks.13.norm1.weight", "blocks.14.mlp.fc2.bias"} <= state.keys()
    assert not any(name.startswith(tuple(MISSPELT)) or name.startswith("head.") for name in state)


def test_other_files_are_refused(tmp_path: Path) -> None:
    def network(family: str, path: Path) -> Any:
        return ViTNetwork(family, str(path), PATCH * SIDE, PATCH, [SIDE, SIDE], 128).network

    with pytest.raises(UserError, match="does not exist"):
        network("mocov3", tmp_path / "none.pth.tar")
    plain = tmp_path / "plain.pth"
    torch.save(weights_of(128), plain)
    with pytest.raises(UserError, match="is not a file of mocov3 as it is published: it lacks pos_embed"):
        network("mocov3", plain)
    torch.save(weights_of(128) | {"blocks.0.more": torch.ones(1)}, plain)
    with pytest.raises(UserError, match="1 of its weights differ by name or shape"):
        network("dino", plain)
