"""Each family's tokens are the library's own patch tokens, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from urepa.core.errors import UserError
from urepa.models.teachers.vit_net import FAMILIES, ViTNetwork

WIDTH, LAYERS, SIDE = 32, 2, 4
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 64}


def network(family: str, patch: int, image_size: int, width: int = WIDTH) -> Any:
    """A small random network of the family, whose position embeddings and scales differ from their initial values."""
    shape = COMMON | {"patch_size": patch, "image_size": image_size, "hidden_size": width}
    if family in ("dinov2_registers", "dinov3"):
        shape["num_register_tokens"] = 4
    model_class = getattr(transformers, FAMILIES[family].model_class)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**shape))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def teacher_of(family: str, folder: Path, patch: int, image_size: int, side: int = SIDE) -> ViTNetwork:
    rule = "meta" if family == "dinov2" else None
    return ViTNetwork(family, str(folder), image_size, patch, [side, side], WIDTH, rule)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [("dinov2", 1), ("dinov2_registers", 5), ("dinov3", 5), ("clip", 1), ("siglip", 0), ("mae", 1)],
)
def test_tokens_are_the_librarys_patch_tokens(family: str, prefix: int, tmp_path: Path) -> None:
    patch = 14 if "dinov2" in family else 16
    size = patch * SIDE
    reference = network(family, patch, size)
    reference.save_pretrained(tmp_path)
    images = torch.rand(2, 3, size, size)
    tokens = teacher_of(family, tmp_path, patch, size).tokens(images)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in FAMILIES[family].normalisation)
    extra = {}
    if family == "mae":
        reference.config.mask_ratio = 0.0
        extra["noise"] = torch.arange(SIDE * SIDE).float().expand(2, -1)
    with torch.no_grad():
        hidden = reference((images - mean) / std, **extra).last_hidden_state
    assert hidden.shape[1] == SIDE * SIDE + prefix
    assert torch.allclose(tokens.x_BND, F.normalize(hidden[:, prefix:], dim=-1), atol=2e-5)
    assert tokens.grid == (SIDE, SIDE)


@pytest.mark.parametrize("family", ["dinov2", "clip", "siglip", "mae"])
def test_position_embeddings_are_resampled_for_other_image_sizes(family: str, tmp_path: Path) -> None:
    patch = 14 if family == "dinov2" else 16
    network(family, patch, patch * SIDE).save_pretrained(tmp_path)
    tokens = teacher_of(family, tmp_path, patch, patch * 6, side=6).tokens(torch.rand(1, 3, 40, 40))
    assert tokens.x_BND.shape == (1, 36, WIDTH)


def test_pooling_keeps_positions(tmp_path: Path) -> None:
    """37x37 tokens pooled to 16x16 keep their positions: an area of another colour stays in its corner."""
    network("dinov2", 14, 14 * 37).save_pretrained(tmp_path)
    teacher = ViTNetwork("dinov2", str(tmp_path), 14 * 37, 14, [16, 16], WIDTH, "meta")
    plain = torch.full((1, 3, 74, 74), 0.5)
    marked = plain.clone()
    marked[:, :, 60:, :14] = 1.0  # bottom left
    change = (teacher.tokens(marked).x_BND - teacher.tokens(plain).x_BND).norm(dim=-1).view(16, 16)
    row, column = divmod(int(change.argmax()), 16)
    assert row >= 12
    assert column <= 3


def test_a_wrong_statement_about_the_network_is_an_error(tmp_path: Path) -> None:
    network("dinov2", 14, 56).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has width 32 and patches of 14"):
        _ = ViTNetwork("dinov2", str(tmp_path), 56, 14, [4, 4], 64, "meta").network
    with pytest.raises(UserError, match="multiple of its patch"):
        ViTNetwork("dinov2", str(tmp_path), 57, 14, [4, 4], 32, "meta")
    with pytest.raises(UserError, match="could not be loaded"):
        _ = ViTNetwork("dinov2", str(tmp_path / "nothing"), 56, 14, [4, 4], 32, "meta").network
