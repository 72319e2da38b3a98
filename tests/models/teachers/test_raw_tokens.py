"""Raw tokens and class tokens mixed into patch tokens, compared with the networks' own outputs; the names of their
stores; iREPA's targets and head from its published lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.data.cache import of_unit_length
from urepa.method.heads.spatial import Spatial
from urepa.method.losses import loss_math
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network
from urepa.models.teachers.vit import ViT
from urepa.models.teachers.vit_net import FAMILIES, ViTNetwork

Build = Callable[..., Any]
WIDTH, SIDE, PATCH = 32, 4, 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random DINOv2."""
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": PATCH}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**shape, image_size=PATCH * SIDE))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    path = tmp_path_factory.mktemp("dino")
    model.save_pretrained(path)
    return path


def last_states(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """The last layer's states, of the class token first."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in FAMILIES["dinov2"].normalisation)
    with torch.no_grad():
        network = transformers.Dinov2Model.from_pretrained(folder).eval()
        states: torch.Tensor = network((images - mean) / std).last_hidden_state
    return states


def teacher(folder: Path, side: int = SIDE, **changes: Any) -> ViTNetwork:
    return ViTNetwork("dinov2", str(folder), PATCH * SIDE, PATCH, [side, side], WIDTH, "meta", **changes)


def test_raw_tokens_are_the_last_layers_states(folder: Path) -> None:
    images = torch.rand(2, 3, PATCH * SIDE, PATCH * SIDE)
    states = last_states(folder, images)
    raw = teacher(folder, unit_length=False).tokens(images).x_BND
    torch.testing.assert_close(raw, states[:, 1:], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(2, SIDE * SIDE), atol=0.1)
    torch.testing.assert_close(
        teacher(folder).tokens(images).x_BND, F.normalize(states[:, 1:], dim=-1), atol=2e-5, rtol=0
    )
    pooled = teacher(folder, side=2, unit_length=False).tokens(images).x_BND
    by_hand = states[:, 1:].unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(pooled, by_hand, atol=2e-5, rtol=1e-4)


def test_the_class_token_is_added_with_its_weight(folder: Path) -> None:
    images = torch.rand(2, 3, PATCH * SIDE, PATCH * SIDE)
    states = last_states(folder, images)
    mixed = teacher(folder, cls_weight=0.5).tokens(images).x_BND
    torch.testing.assert_close(mixed, F.normalize(states[:, 1:] + 0.5 * states[:, :1], dim=-1), atol=2e-5, rtol=0)
    assert not torch.allclose(mixed, teacher(folder).tokens(images).x_BND, atol=0.01)


def test_a_family_without_a_class_token_is_refused() -> None:
    settings: dict[str, Any] = {"model": "m", "image_size": 64, "patch": 16, "grid": [4, 4], "width": 32}
    ViT(family="clip", **settings, cls_weight=0.2).check()  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"teacher\.cls_weight=0\.2: teacher\.family=siglip has no class token"):
        ViT(family="siglip", **settings, cls_weight=0.2).check()  # type: ignore[arg-type]


def test_other_tokens_have_other_stores_and_manifests(folder: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"unit_length": False},
        {"cls_weight": 0.2},
        {"unit_length": False, "cls_weight": 0.2},
    ]
    manifests = [teacher(folder, **kind).manifest() for kind in kinds]
    names = [m["model"].removeprefix(folder.name) for m in manifests]
    assert names == ["", "-raw", "-cls0.2", "-cls0.2-raw"]
    assert [m.get("unit_length") for m in manifests] == [None, False, None, False]
    assert [m.get("cls_weight") for m in manifests] == [None, None, 0.2, 0.2]
    own: dict[str, Any] = {"family": "dinov2", "model": "a/m@v1", "image_size": 56, "patch": 14, "grid": [4, 4]}
    declared = [ViT(**own, width=32, positions="meta", **kind) for kind in kinds]  # type: ignore[arg-type]
    assert [one.stored_as()["model"] for one in declared] == ["m", "m-raw", "m-cls0.2", "m-cls0.2-raw"]


def test_the_mean_token_is_that_of_directions() -> None:
    tokens = 5 * torch.randn(3, 4, 6)
    unit = of_unit_length(tokens.numpy(), {"unit_length": False})
    torch.testing.assert_close(torch.from_numpy(unit).float(), F.normalize(tokens, dim=-1))
    assert of_unit_length(tokens.numpy(), {}) is not None
    assert (of_unit_length(tokens.numpy(), {}) == tokens.numpy()).all()


def test_irepas_targets_are_its_published_lines() -> None:
    """README of its code: x − γ·mean over tokens, divided by the deviation + 1e-6, of raw tokens."""
    raw = 3 * torch.randn(2, 16, 5) + 1
    x = raw - 0.6 * raw.mean(dim=1, keepdim=True)
    x = x / (x.std(dim=1, keepdim=True) + 1e-6)
    ours = loss_math.normalise_spatially(raw, 0.6)
    torch.testing.assert_close(ours, x)
    assert not torch.allclose(loss_math.normalise_spatially(F.normalize(raw, dim=-1), 0.6), x, atol=0.05)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_the_kernel_has_the_size_that_was_asked_for(kernel: int, compose: Build) -> None:
    """Elsewhere its size was lost between command line and layer, and was 1."""
    part = compose("head=irepa", f"head.kernel={kernel}")["head"]
    head = declaration_of(part).build(in_width=3, out_width=4)
    assert head.layers[0].weight.shape[2:] == (kernel, kernel)
    tapped = Tokens.from_map(torch.randn(1, 3, 9, 9))
    moved = tapped.x_BND.clone()
    moved[0, 40] += 1.0
    out, other = (head(Tokens(x, (9, 9)), torch.zeros(1), (9, 9)).x_BND for x in (tapped.x_BND, moved))
    changed = (out != other).any(-1).view(9, 9).nonzero()
    assert len(changed) == kernel**2
    assert (changed.min().item(), changed.max().item()) == (4 - kernel // 2, 4 + kernel // 2)
    with pytest.raises(UserError, match=r"head\.kernel=2: give an odd number"):
        Spatial(kernel=2).check()


@pytest.mark.slow
def test_a_run_trains_towards_raw_tokens(small_sit: list[str], trainer_of: Build) -> None:
    trainers = [trainer_of(*small_sit, "loss.spatial_norm=0.6", f"teacher.unit_length={yes}") for yes in ("false",)]
    batch = trainers[0].reader.read(0)[0]
    raw = batch.teachers[""].x_BND.float()
    assert raw.norm(dim=-1).std() > 0.1
    network = EfficientNetLite0Network(128, [4, 4], 32, unit_length=False)
    assert network.manifest()["model"] == "efficientnet-lite0-raw"
    trainers[0].update(0, [batch], with_tap_gradients=False)
    usual = trainer_of(*small_sit).reader.read(0)[0].teachers[""].x_BND.float()
    torch.testing.assert_close(F.normalize(raw, dim=-1), usual, atol=2e-3, rtol=0)
    folders = {p.name for p in Path(str(trainer_of(*small_sit).reader.cache.latents.folder)).parent.iterdir()}
    assert {n for n in folders if n.startswith("tokens_")} >= {
        "tokens_efficientnet-lite0_128_4x4",
        "tokens_efficientnet-lite0-raw_128_4x4",
    }
