"""The image encoder as NanoDiT's description feeds and reads it: a random network of DINOv3's kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captioned_photos import nanodit_overrides, write_captioned_photos
from photos import write_clip_text
from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from urepa.core.errors import UserError
from urepa.core.part_names import PATCHES
from urepa.models.teachers.described_vit import DescribedViT
from urepa.models.teachers.vit import ViT

WIDTH = 16
DOCUMENTED = {  # rows and columns of a bucket, the input that the description gives, and its whole patches of 16 pixels
    (1024, 1024): ((1022, 1022), (63, 63)),
    (832, 1216): ((826, 1218), (51, 76)),
    (1216, 832): ((1218, 826), (76, 51)),
    (768, 1280): ((770, 1274), (48, 79)),
    (1280, 768): ((1274, 770), (79, 48)),
    (704, 1344): ((700, 1344), (43, 84)),
    (1344, 704): ((1344, 700), (84, 43)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = DINOv3ViTModel(DINOv3ViTConfig(**shape, patch_size=16, image_size=64, num_register_tokens=4))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("dinov3")
    network.save_pretrained(folder)
    return folder


def settings(folder: Path, side: int, image_side: int = 64, **changes: Any) -> Any:
    known = {"family": "dinov3", "model": str(folder), "image_size": side, "patch": 16, "width": WIDTH}
    known |= {"grid": [side // 16, side // 16], "multiple": 14, "image_side": image_side, "leading": 5}
    return DescribedViT(**(known | changes))


def hidden(folder: Path, images: Tensor) -> Tensor:
    """All tokens of the network for images of the size that they have."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        pixels = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        found: Tensor = DINOv3ViTModel.from_pretrained(folder)(pixels).last_hidden_state
    return found


@pytest.mark.parametrize("bucket", DOCUMENTED)
def test_grids_of_the_documented_inputs(bucket: tuple[int, int], folder: Path) -> None:
    _, grid = DOCUMENTED[bucket]
    assert settings(folder, 1022, 1024).grid_at(bucket, 1024) == grid
    assert settings(folder, 1022, 1024).grid_at([n // 8 for n in bucket], 128) == grid, "of a latent"


@pytest.mark.slow
def test_the_input_has_the_documented_sides_and_only_whole_patches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = settings(folder, 1022, 1024).build(), []

    def see(pixels: Tensor) -> Any:
        seen.append(tuple(pixels.shape[2:]))
        raise StopIteration

    monkeypatch.setattr(network.network, "forward", see)
    for bucket, (size, grid) in DOCUMENTED.items():
        with pytest.raises(StopIteration):
            network.states(torch.rand(1, 3, *bucket), grid)
        assert seen.pop() == size


def test_patches_of_an_input_that_they_do_not_fill(folder: Path) -> None:
    images = torch.rand(2, 3, 48, 80)
    vector, tokens = settings(folder, 70).build().states(images, (2, 5))
    shrunk = F.interpolate(images, size=(42, 84), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    expected = hidden(folder, shrunk[:, :, :32, :80])
    torch.testing.assert_close(tokens.x_BND, expected[:, 5:])
    torch.testing.assert_close(vector, expected[:, 0])
    assert tokens.grid == (2, 5)


def test_registers_among_the_patches(folder: Path) -> None:
    """With one leading token the first four are registers and every patch is four places late."""
    images = torch.rand(2, 3, 48, 80)
    right = ViT("urepa.models.teachers.vit.ViT", "dinov3", str(folder), 64, 16, [4, 4], WIDTH).build()  # type: ignore[arg-type]
    _, patches = right.states(images, (3, 5))
    five, one = (settings(folder, 64, multiple=16, leading=n).build() for n in (5, 1))
    torch.testing.assert_close(five.states(images, (3, 5))[1].x_BND, patches.x_BND)
    _, slipped = one.states(images, (3, 5))
    torch.testing.assert_close(slipped.x_BND[:, 4:], patches.x_BND[:, :-4])
    torch.testing.assert_close(slipped.x_BND[:, :4], hidden(folder, images)[:, 1:5])
    names = {network.manifest()["model"] for network in (five, one)}
    assert len(names) == 2, "stores of different tokens have different names"


@pytest.mark.parametrize(
    ("side", "changes", "words"),
    [
        (64, {}, r"image_size=64 must be 70, the multiple of 14 nearest to image_side=64"),
        (70, {"grid": [5, 5]}, r"grid=\[5, 5\] all its whole patches of 16 pixels, \[4,4\]"),
        (70, {"positions": "meta"}, "teacher.positions has no effect here"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder: Path, side: int, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(folder, side, **changes).check()


def test_images_and_tokens_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="an input of 28x28 pixels has other patches than 4x4: give .* image_side"):
        settings(folder, 70).build().states(torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match="leading=6 leaves 15 tokens of .* for 16 patches: give at most 5"):
        settings(folder, 70, leading=6).build().states(torch.rand(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "changes", "grids"),
    [
        ("multiples_of_14", ["image_size=70"], {"64x64": (4, 4), "48x80": (2, 5), "80x48": (5, 2)}),
        ("registers", ["image_size=64"], {"64x64": (4, 4), "48x80": (3, 5), "80x48": (5, 3)}),
    ],
)
def test_an_update_under_such_tokens(
    choice: str, changes: list[str], grids: dict[str, Any], folder: Path, tmp_path: Path, trainer_of: Callable[..., Any]
) -> None:
    photos, clip = write_captioned_photos(tmp_path / "photos", 6), write_clip_text(tmp_path / "clip")
    own = [f"teacher@data.image_encoder=dinov3_l_{choice}", "data.image_encoder.grid=[4,4]"]
    own += [f"data.image_encoder.{key}" for key in (f"model={folder}", f"width={WIDTH}", "image_side=64", *changes)]
    sizes = ("backbone.depth=2", "backbone.width=32", "backbone.heads=2", "trainer.batch_size=4")
    trainer = trainer_of(*nanodit_overrides(photos, tmp_path / "caches", clip, *own, *sizes))
    found = {}
    for step in range(6):
        batches = trainer.reader.read(step)
        bucket = trainer.reader.cache.buckets[trainer.reader.order.read(step)[0]].bucket
        found[bucket] = batches[0].condition[PATCHES].grid
        assert torch.isfinite(trainer.update(step, batches, with_tap_gradients=False).norms["all"])
    assert found.items() <= grids.items()
    assert found
