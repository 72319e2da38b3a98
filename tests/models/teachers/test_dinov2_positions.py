"""DINOv2 at other image sizes than its own: each rule is compared with its formula, in the table, in the tokens and on
a rectangle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import metas
import pytest
import torch
import torch.nn.functional as F
import transformers

from urepa.core.errors import UserError
from urepa.models.teachers.dino.dinov2_positions import RULES, resample
from urepa.models.teachers.vit_net import IMAGENET, ViTNetwork

WIDTH, PATCH = 32, 14


@pytest.fixture(scope="module", params=["mlp", "swiglu"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random DINOv2 on 37x37 patches, in Meta's layout."""
    path = tmp_path_factory.mktemp("meta") / f"dinov2_{request.param}.pth"
    torch.save(metas.state("dinov2", WIDTH, gated=request.param == "swiglu"), path)
    return path


def teacher(model: Path, size: int, rule: str | None) -> ViTNetwork:
    return ViTNetwork("dinov2", str(model), size, PATCH, [size // PATCH] * 2, WIDTH, rule)


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET)
    return (images - mean) / std


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (16, 32), (43, 20)])
def test_a_rule_is_its_formula(rule: str, grid: tuple[int, int]) -> None:
    positions_1ND = metas.state("dinov2", 8, gated=False)["pos_embed"]
    found = resample(positions_1ND, grid, rule)
    assert found.shape == (1, 1 + grid[0] * grid[1], 8)
    assert torch.allclose(found.double(), metas.positions(rule, positions_1ND, grid), atol=2e-5)
    for other in RULES.keys() - {rule}:
        assert (found - resample(positions_1ND, grid, other)).abs().max() > 0.05


def test_the_trained_grid_is_left_as_it_is_and_half_precision_is_resampled_in_full() -> None:
    positions_1ND = metas.state("dinov2", 8, gated=False)["pos_embed"]
    half = positions_1ND.bfloat16()
    for rule in RULES:
        assert resample(positions_1ND, (37, 37), rule) is positions_1ND
        assert torch.equal(resample(half, (16, 16), rule), resample(half.float(), (16, 16), rule).bfloat16())


@pytest.mark.fast(3)
@pytest.mark.parametrize("size", [224, 448])
@pytest.mark.parametrize("rule", RULES)
def test_tokens_are_those_of_the_rule(file: Path, rule: str, size: int) -> None:
    weights, images = torch.load(file, weights_only=True), torch.rand(2, 3, size, size)
    grid = (size // PATCH, size // PATCH)
    expected = metas.tokens(weights, normalised(images), 1, metas.positions(rule, weights["pos_embed"], grid))
    found = teacher(file, size, rule).tokens(images)
    assert found.grid == grid
    assert torch.allclose(found.x_BND.double(), F.normalize(expected, dim=-1), atol=5e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_rectangle_has_both_factors(file: Path, rule: str) -> None:
    weights, pixels = torch.load(file, weights_only=True), torch.randn(1, 3, 224, 448)
    expected = metas.tokens(weights, pixels, 1, metas.positions(rule, weights["pos_embed"], (16, 32)))
    with torch.no_grad():
        found = teacher(file, 224, rule).network(pixels).last_hidden_state[:, 1:]
    assert torch.allclose(found.double(), expected, atol=2e-4)


@pytest.mark.fast(2)
@pytest.mark.parametrize("size", [224, 448, 518])
def test_transformers_rule_is_the_librarys_bit_for_bit(file: Path, size: int, tmp_path: Path) -> None:
    """The rule of stores of earlier versions; at 518 px all rules agree."""
    library = teacher(file, 518, "meta").network  # a copy of it through the library's own loading
    library.save_pretrained(tmp_path)
    library = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    images = torch.rand(1, 3, size, size)
    rule = "meta" if size == 518 else "transformers"
    with torch.no_grad():
        expected = library(normalised(images)).last_hidden_state
        ours = teacher(tmp_path, size, rule)
        assert torch.equal(ours.network(normalised(images)).last_hidden_state, expected)
    assert ours.weights_sha256() == teacher(file, size, rule).weights_sha256()


def test_with_registers_the_library_has_metas_rule() -> None:
    """Meta's models with registers are resampled to the size with antialiasing, which is `timm` above."""
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=518, patch_size=PATCH
    )
    embeddings = transformers.Dinov2WithRegistersModel(config).embeddings
    with torch.no_grad():
        embeddings.position_embeddings.normal_()
        found = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 16 * 32, 8), 224, 448)
    expected = metas.positions("timm", embeddings.position_embeddings.detach(), (16, 32))
    assert torch.allclose(found.double(), expected, atol=2e-5)


def test_the_manifest_has_the_rule_if_tokens_depend_on_it() -> None:
    def of(family: str, size: int, rule: str | None) -> Any:
        return ViTNetwork(family, "m", size, PATCH, [16, 16], WIDTH, rule).manifest().get("positions")

    assert [of("dinov2", 224, rule) for rule in RULES] == list(RULES)
    assert of("dinov2", 518, "meta") is None
    assert of("dinov2_registers", 224, None) is None


@pytest.mark.parametrize(
    ("family", "size", "rule", "said"),
    [
        ("dinov2", 224, None, "needs teacher.positions, one of meta, timm, transformers"),
        ("dinov2", 224, "bilinear", "give one of meta, timm, transformers"),
        ("dinov2", 518, "timm", "no effect at teacher.image_size=518"),
        ("dinov2_registers", 224, "meta", "no effect with teacher.family=dinov2_registers"),
        ("clip", 448, "meta", "no effect with teacher.family=clip"),
    ],
)
def test_a_choice_without_an_effect_is_an_error(family: str, size: int, rule: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ViTNetwork(family, "m", size, PATCH, [16, 16], WIDTH, rule)
