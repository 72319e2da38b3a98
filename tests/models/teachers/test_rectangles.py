"""Teachers' tokens of images that are not square: as many pixels per token as on a square, each at its position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.models.teachers.dino.dinov2_positions import RULES
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network
from urepa.models.teachers.rectangle_sizes import grid_for, map_size, proportional_grid
from urepa.models.teachers.vit_net import FAMILIES, IMAGENET, ViTNetwork

WIDTH = 32
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("grid", "shape", "side", "expected"),
    [
        ((8, 8), (12, 20), 16, (6, 10)),
        ((8, 8), (384, 640), 512, (6, 10)),  # the same in pixels
        ((16, 16), (24, 40), 32, (12, 20)),
        ((4, 5), (16, 16), 16, (4, 5)),
        ((4, 4), (10, 16), 16, (3, 4)),  # 2.5: halves go up
        ((4, 4), (1, 64), 16, (1, 16)),
    ],
)
def test_a_grid_is_in_the_images_proportions(grid: Any, shape: Any, side: int, expected: Any) -> None:
    assert proportional_grid(grid, shape, side) == expected
    assert grid_for(EfficientNetLite0Network(256, list(grid), 16), shape, side) == expected


def test_a_map_has_as_many_cells_per_token_as_on_a_square() -> None:
    assert map_size((6, 10), (8, 8), 16) == (12, 20)
    assert map_size((16, 16), (16, 16), 37) == (37, 37)  # DINOv2's at 518 px
    assert map_size((12, 20), (16, 16), 37) == (28, 46)  # 27.75 and 46.25


def test_a_teacher_of_squares_refuses_only_other_shapes() -> None:
    teacher = SimpleNamespace(grid=[4, 4])
    assert grid_for(teacher, (16, 16), 16) == (4, 4)
    with pytest.raises(UserError, match=r"^the teacher SimpleNamespace takes square images only.* 12x20: choose"):
        grid_for(teacher, (12, 20), 16)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "dinov2_b", "clip_l"])
def test_a_declaration_and_its_network_agree(compose: Callable[..., dict[str, Any]], name: str) -> None:
    declared = declaration_of(compose(f"teacher={name}")["teacher"])
    network = declared.build()
    assert declared.grid_at((12, 20), 16) == network.grid_at((12, 20), 16) != network.grid


@pytest.mark.fast(1)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_an_efficientnets_rectangle_is_its_map_of_it(stride: int) -> None:
    """With two cells per token: 3x5 tokens of an image of 6x10 cells."""
    teacher = EfficientNetLite0Network(8 * 32, [8 * 32 // stride // 2] * 2, stride)
    images = torch.rand(2, 3, 6 * stride, 10 * stride)
    tokens = teacher.tokens(images, (3, 5))
    with torch.no_grad():
        map_BDhw = teacher._map((images * 255 - 127) / 128)
    assert map_BDhw.shape[2:] == (6, 10)
    pooled_BDhw = F.avg_pool2d(map_BDhw, 2)
    assert tokens.grid == (3, 5)
    expected = F.normalize(pooled_BDhw.flatten(2).transpose(1, 2), dim=-1)
    torch.testing.assert_close(tokens.x_BND, expected, atol=1e-5, rtol=1e-4)


def test_a_squares_own_grid_changes_nothing() -> None:
    teacher, images = EfficientNetLite0Network(64, [4, 4], 16), torch.rand(2, 3, 40, 40)
    assert torch.equal(teacher.tokens(images).x_BND, teacher.tokens(images, (4, 4)).x_BND)
    assert teacher.manifest() == teacher.manifest((4, 4))
    assert teacher.manifest((3, 5)) == teacher.manifest() | {"grid": [3, 5]}


def small(family: str, folder: Path, patch: int, size: int) -> Any:
    """A small random network of the family, in a folder."""
    shape = COMMON | {"patch_size": patch, "image_size": size}
    if family in ("dinov2_registers", "dinov3"):
        shape["num_register_tokens"] = 4
    model_class = getattr(transformers, FAMILIES[family].model_class)
    torch.manual_seed(0)
    network = model_class(model_class.config_class(**shape))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    network.save_pretrained(folder)
    return network.eval()


@pytest.mark.parametrize("family", sorted(name for name, own in FAMILIES.items() if own.model_class))
def test_every_familys_tokens_are_at_their_positions_in_the_image(family: str, tmp_path: Path) -> None:
    """A patch of another colour changes its own token most, on 3x5 patches of an image with these proportions."""
    patch = 14 if "dinov2" in family else 16
    small(family, tmp_path, patch, 4 * patch)
    rule = "meta" if family == "dinov2" else None
    teacher = ViTNetwork(family, str(tmp_path), 4 * patch, patch, [4, 4], WIDTH, rule)
    plain = torch.full((1, 3, 3 * patch, 5 * patch), 0.5)
    marked = plain.clone()
    marked[:, :, 2 * patch :, 3 * patch : 4 * patch] = 1.0
    tokens = teacher.tokens(marked, (3, 5))
    change_N = (tokens.x_BND - teacher.tokens(plain, (3, 5)).x_BND).norm(dim=-1)[0]
    assert tokens.grid == (3, 5)
    assert int(change_N.argmax()) == 2 * 5 + 3


@pytest.mark.parametrize("rule", list(RULES))
def test_dinov2s_positions_follow_a_rectangle_by_the_rule(rule: str, tmp_path: Path) -> None:
    """The library's network, given the table resampled here."""
    network = small("dinov2", tmp_path, 14, 14 * 37)
    teacher = ViTNetwork("dinov2", str(tmp_path), 14 * 8, 14, [4, 4], WIDTH, rule)
    images = torch.rand(1, 3, 14 * 6, 14 * 10)
    table_1DMM = network.embeddings.position_embeddings[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    rows_1ND = RULES[rule](table_1DMM, (6, 10)).flatten(2).transpose(1, 2)
    whole = torch.cat((network.embeddings.position_embeddings[:, :1], rows_1ND), dim=1)
    network.embeddings.interpolate_pos_encoding = lambda *_: whole
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET)
    with torch.no_grad():
        hidden_BND = network((images - mean) / std).last_hidden_state[:, 1:]
    pooled = F.avg_pool2d(hidden_BND.transpose(1, 2).unflatten(2, (6, 10)), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher.tokens(images, (3, 5)).x_BND, F.normalize(pooled, dim=-1), atol=2e-5, rtol=1e-4)


def test_the_rule_of_positions_is_in_the_manifest_if_they_are_resampled() -> None:
    native = ViTNetwork("dinov2", "dino", 518, 14, [37, 37], WIDTH, "meta")
    assert "positions" not in native.manifest()
    assert native.manifest((37, 37)) == native.manifest()
    assert native.manifest((30, 44)) == native.manifest() | {"grid": [30, 44], "positions": "meta"}
    other = ViTNetwork("clip", "clip", 224, 14, [16, 16], WIDTH, None)
    assert other.manifest((12, 20)) == other.manifest() | {"grid": [12, 20]}
