"""Conditions of a caption and an image, from caches of photographs of three shapes: values, statistics, manifests,
batches and mistakes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned import clip_at
from captioned_photos import write_captioned_photos

from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES, TEXT
from urepa.data.reader import Layout, TrainingReader, ValidationReader
from urepa.data.tracks.pixel_track import PixelTrack
from urepa.method.objectives.flow_clamped_math import ClampedFlowMath
from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0
from urepa.models.teachers.vit import ViT

pytestmark = pytest.mark.slow
DROPOUT = {"text+image": 0.1, "image": 0.3, "text": 0.05}
GRIDS = {"64x64": (8, 8), "48x80": (6, 10), "80x48": (10, 6)}


def settings(place: Path, **changes: Any) -> PixelTrack:
    known: dict[str, Any] = {"name": "photos", "root": str(place / "caches"), "source": "folder"}
    known |= {"images": str(place / "photos"), "limit": None, "validation_images": 6, "test_images": 6, "channels": 3}
    known |= {"image_size": 64, "unshuffle": 4, "scale": 2.0, "num_classes": 2, "cfg_dropout": 0.1}
    known |= {"build_on_first_use": True, "buckets": "auto", "captions": "files", "text_encoder": clip_at(place)}
    known |= {"image_encoder": EfficientNetLite0(image_size=128, grid=[8, 8], stride=16), "dropout": DROPOUT}
    return PixelTrack(**(known | changes))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, a small CLIP and caches."""
    place = tmp_path_factory.mktemp("photos")
    write_captioned_photos(place / "photos", 6)
    settings(place).build().open(None).close()
    return place


@pytest.fixture
def cache(place: Path) -> Any:
    opened = settings(place).build().open(None)
    yield opened
    opened.close()


def records_of(place: Path, bucket: Any) -> torch.Tensor:
    """What the encoder gives of a bucket's training images, computed again from the pixels: [S,1+T,D]."""
    track, network = settings(place).build(), EfficientNetLite0(image_size=128, grid=[8, 8], stride=16).build()
    x0 = bucket.x0(list(bucket.splits["train"]))
    vectors, patches = network.states(track.to_rgb(x0), GRIDS[bucket.bucket])
    return torch.cat([vectors[:, None], patches.x_BND], dim=1)


def test_parts_are_the_encoders_values_by_statistics_over_the_training_set(place: Path, cache: Any) -> None:
    found = {bucket.bucket: records_of(place, bucket) for bucket in cache.buckets}
    assert found.keys() == GRIDS.keys()
    vectors = torch.cat([records[:, 0] for records in found.values()]).double()
    mean, deviation = vectors.mean(0), vectors.std(0, correction=0)
    for bucket in cache.buckets:
        samples, grid = list(bucket.splits["train"]), GRIDS[bucket.bucket]
        condition = bucket.conditions.of_samples(samples)
        assert condition.names[0] == TEXT
        assert condition[PATCHES].grid == grid
        expected = ((found[bucket.bucket] - mean) / deviation).float()
        torch.testing.assert_close(condition[CLS].value, expected[:, 0], rtol=0.01, atol=0.02)
        torch.testing.assert_close(condition[PATCHES].value, expected[:, 1:], rtol=0.01, atol=0.02)


def test_patches_by_their_own_statistics_have_mean_0_and_deviation_1(place: Path) -> None:
    cache = settings(place, patch_statistics="patches").build().open(None)
    values = [b.conditions.of_samples(list(b.splits["train"]))[PATCHES].value.flatten(0, 1) for b in cache.buckets]
    patches = torch.cat(values)
    torch.testing.assert_close(patches.mean(0), torch.zeros(112), rtol=0, atol=0.01)
    torch.testing.assert_close(patches.std(0, correction=0), torch.ones(112), rtol=0, atol=0.01)
    cache.close()


def test_the_manifest_names_encoder_stride_normalisation_and_crop(place: Path) -> None:
    folders = sorted((settings(place).folder).glob("*/image_tokens_*"))
    assert [folder.parent.name for folder in folders] == sorted(GRIDS)
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        rows, columns = GRIDS[folder.parent.name]
        assert (manifest["kind"], manifest["grid"]) == ("image_tokens", [rows, columns])
        assert manifest["shape"] == [1 + rows * columns, 112]
        wanted = {"model": "efficientnet-lite0-s16", "stride": 16, "normalisation": "127/128", "crop": "none"}
        assert manifest["encoder"].items() >= (wanted | {"vector": "mean"}).items()
        assert "weights_sha256" in manifest["encoder"]
        assert "statistics_sha256" in manifest


def test_a_batch_withholds_parts_together_with_the_documented_probabilities(cache: Any) -> None:
    objective = ClampedFlowMath("linear", "lognormal", 0.001, 0.999)
    reader = TrainingReader(cache, objective, Layout(6, accumulation=2), seed=3)
    outcomes: Counter[tuple[bool, bool, bool]] = Counter()
    for step in range(120):
        for batch in reader.read(step):
            grid = batch.condition[PATCHES].grid
            assert grid == (batch.x0.shape[2] // 2, batch.x0.shape[3] // 2), "a patch of the latent for each"
            outcomes.update(zip(*(batch.condition[p].given_B.tolist() for p in (TEXT, CLS, PATCHES)), strict=True))
    total = sum(outcomes.values())
    assert total == 720
    wanted = {(False,) * 3: 0.1, (True, False, False): 0.3, (False, True, True): 0.05, (True,) * 3: 0.55}
    assert outcomes.keys() == wanted.keys()
    for outcome, share in wanted.items():
        assert abs(outcomes[outcome] / total - share) < 4 * (share * (1 - share) / total) ** 0.5
    batch = ValidationReader(cache, objective, 2).read(0)
    assert all(bool(batch.condition[part].given_B.all()) for part in (TEXT, CLS, PATCHES))


def test_withheld_images_keep_no_value(cache: Any) -> None:
    bucket = cache.buckets[0]
    condition = bucket.conditions.of_samples(list(bucket.splits["train"])[:2])
    dropped = condition.drop({"image": torch.tensor([True, False])})
    assert dropped[CLS].value[0].abs().max() == dropped[PATCHES].value[0].abs().max() == 0
    assert torch.equal(dropped[PATCHES].value[1], condition[PATCHES].value[1])
    assert dropped[PATCHES].grid == condition[PATCHES].grid
    null = bucket.conditions.null(2)
    assert [bool(null[part].given_B.any()) for part in null.names] == [False] * len(null.names)
    assert null[PATCHES].value.shape == condition[PATCHES].value.shape


def test_shuffled_patches_are_the_same_patches_in_an_order_of_their_own(place: Path, cache: Any) -> None:
    shuffled = settings(place, shuffle_patches=True).build().open(None)
    bucket, other = cache.buckets[0], shuffled.buckets[0]
    samples = list(bucket.splits["train"])[:3]
    ours, theirs = (b.conditions.of_samples(samples)[PATCHES].value for b in (bucket, other))
    again = other.conditions.of_samples(samples)[PATCHES].value
    drawn = other.conditions.of_samples(samples, lambda purpose, i: np.random.default_rng(i))[PATCHES].value
    assert torch.equal(theirs, again)
    for moved in (theirs, drawn):
        assert not torch.equal(ours, moved)
        torch.testing.assert_close(ours.sort(dim=1).values, moved.sort(dim=1).values)
    assert not torch.equal(theirs, drawn)
    shuffled.close()


def test_prompts_and_files_make_four_kinds_of_conditions(place: Path, cache: Any) -> None:
    track = settings(place).build()
    maker = track.of_bucket("48x80").conditions
    image = torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    found = {
        (text, pictured): maker.of_prompts([text], image if pictured else None)
        for text in ("", "a flower")
        for pictured in (False, True)
    }
    for (text, pictured), condition in found.items():
        given = [bool(condition[part].given_B) for part in (TEXT, CLS, PATCHES)]
        assert given == [bool(text), pictured, pictured]
        assert condition[PATCHES].grid == (6, 10)
    assert track.of_size((32, 64)).conditions.grid == (4, 8)
    bucket = next(b for b in cache.buckets if b.bucket == "48x80")
    sample = list(bucket.splits["train"])[:1]
    pixels = track.to_rgb(bucket.x0(sample))
    own = maker.of_prompts([""], pixels)
    stored = bucket.conditions.of_samples(sample)
    torch.testing.assert_close(own[PATCHES].value, stored[PATCHES].value, rtol=0.01, atol=0.02)


def test_a_store_with_a_patch_too_many_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    folder = settings(place).folder / "64x64" / "image_tokens_efficientnet-lite0-s16_128_8x8"
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = (folder / "manifest.json").read_text()
    for changes, words in (
        ({"shape": [66, 112]}, r"shape: \[66, 112\] there"),
        ({"encoder": {"crop": "center"}}, "crop"),
    ):
        wrong = manifest | {k: manifest[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
        (folder / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=words) as refused:
            settings(place).build().open(None)
        assert "\n" not in str(refused.value)
        (folder / "manifest.json").write_text(kept)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": {}}, "data.image_encoder needs data.dropout"),
        ({"flip": True}, "no image tokens of mirrored images"),
        ({"captions": None, "text_encoder": None}, "give data.captions too"),
        ({"image_encoder": None}, "data.dropout has no effect without data.image_encoder"),
        ({"image_encoder": None, "dropout": {}, "shuffle_patches": True}, "data.shuffle_patches has no effect"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(tmp_path, **changes).check()


def test_a_dropout_of_an_unknown_part_is_refused_before_the_first_step(place: Path) -> None:
    cache = settings(place, dropout={"images": 0.1}).build().open(None)
    with pytest.raises(UserError, match="no part 'images'; it has text, text.pooled, image.cls, image.patches"):
        TrainingReader(cache, ClampedFlowMath("linear", "lognormal", 0.001, 0.999), Layout(4), seed=0)
    cache.close()


def test_without_caches_only_texts_can_be_prompts(place: Path, tmp_path: Path) -> None:
    maker = settings(place, root=str(tmp_path)).build().of_bucket("64x64").conditions
    assert bool(maker.of_prompts(["a flower"])[TEXT].given_B)
    with pytest.raises(UserError, match="by whose statistics"):
        maker.of_prompts([""], torch.rand(1, 3, 64, 64))


def test_a_vit_gives_its_class_token_and_leaves_registers_out(tmp_path: Path) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_register_tokens=4
    )
    network = DINOv3ViTModel(config).eval()
    network.save_pretrained(tmp_path)
    declared = ViT(family="dinov3", model=str(tmp_path), image_size=64, patch=16, grid=[4, 4], width=32)  # type: ignore[arg-type]
    teacher, images = declared.build(), torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    vectors, patches = teacher.states(images, declared.grid_at((48, 80), 64))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        hidden = network((images - mean) / std).last_hidden_state
    assert hidden.shape[1] == 1 + 4 + 15
    assert (patches.grid, teacher.vector) == ((3, 5), "cls")
    torch.testing.assert_close(vectors, hidden[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(patches.x_BND, hidden[:, 5:], rtol=1e-4, atol=1e-4)
