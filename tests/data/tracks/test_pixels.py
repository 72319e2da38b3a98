"""A small track's splits and caches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

from urepa.core.errors import UserError
from urepa.data.cache import SPLITS, Cache
from urepa.data.lists.paths import is_finished
from urepa.data.stores.record_reading import Store
from urepa.data.tracks import pixel_bucket_caches
from urepa.data.tracks.pixel_caches import PixelTrackCaches
from urepa.data.tracks.pixel_track import PixelTrack
from urepa.models.teachers.dino.dinov2_positions import RULES
from urepa.models.teachers.several_teachers import SeveralTeachers
from urepa.models.teachers.vit_net import ViTNetwork

Track = Callable[..., PixelTrackCaches]


def ids(cache: Cache, split: str) -> list[str]:
    return [s.sample_id for s in cache.splits[split]]


def digits_track(root: str) -> PixelTrackCaches:
    """A track of scikit-learn's digits at 8 px, as 4x4x4."""
    sizes: dict[str, Any] = {"channels": 1, "image_size": 8, "unshuffle": 2, "scale": 1.0, "num_classes": 10}
    held_out = {"limit": None, "validation_images": 180, "test_images": 180}
    source: dict[str, Any] = {"name": "digits", "root": root, "source": "digits", "images": "scikit-learn"}
    return PixelTrack(**source, **held_out, **sizes, cfg_dropout=0.1, build_on_first_use=True).build()


def opened(track: PixelTrackCaches, teacher: Any = None) -> Cache:
    cache = track.open(teacher)
    cache.close()
    return cache


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All of scikit-learn's digits, split as the quickstart splits them."""
    root = str(tmp_path_factory.mktemp("digits"))
    track = digits_track(root)
    cache = track.open(None)
    yield cache
    cache.close()


# --- splits -------------------------------------------------------------------------------------------------


def test_splits_share_neither_names_nor_images(cache: Cache) -> None:
    names = {split: set(ids(cache, split)) for split in SPLITS}
    contents = {split: {x.tobytes() for x in cache.x0(cache.splits[split]).numpy()} for split in SPLITS}
    for parts in (names, contents):
        assert {split: len(parts[split]) for split in SPLITS} == {"train": 30, "val": 6, "test": 6}
        assert len(set.union(*parts.values())) == 42


def test_digits_splits_share_neither_names_nor_images(digits: Cache) -> None:
    contents = {split: {x.tobytes() for x in digits.x0(digits.splits[split]).numpy()} for split in SPLITS}
    assert {split: len(parts) for split, parts in contents.items()} == {"train": 1437, "val": 180, "test": 180}
    assert len(set.union(*contents.values())) == 1797
    assert len({name for split in SPLITS for name in ids(digits, split)}) == 1797


def test_splits_are_class_balanced(cache: Cache, digits: Cache) -> None:
    for split, each in (("train", 10), ("val", 2), ("test", 2)):
        assert Counter(s.class_id for s in cache.splits[split]) == {0: each, 1: each, 2: each}
    for split in ("val", "test"):
        assert Counter(s.class_id for s in digits.splits[split]) == dict.fromkeys(range(10), 18)


def test_a_number_that_does_not_divide_differs_by_one_at_most(make_track: Track) -> None:
    cache = opened(make_track(validation_images=7, limit=11))
    assert sorted(Counter(s.class_id for s in cache.splits["val"]).values()) == [2, 2, 3]
    assert sorted(Counter(s.class_id for s in cache.splits["train"]).values()) == [3, 4, 4]


def test_limit_changes_neither_validation_nor_test(make_track: Track) -> None:
    caches = {limit: opened(make_track(limit=limit)) for limit in (None, 6, 12)}
    for split in ("val", "test"):
        assert len({tuple(ids(cache, split)) for cache in caches.values()}) == 1
    train = {limit: set(ids(cache, "train")) for limit, cache in caches.items()}
    assert {limit: len(names) for limit, names in train.items()} == {None: 30, 6: 6, 12: 12}
    assert train[6] < train[12] < train[None]


def test_the_publishers_test_images_stay_apart(cache: Cache) -> None:
    assert all(name.startswith("test_") for name in ids(cache, "test"))
    assert all(name.startswith("train_") for split in ("train", "val") for name in ids(cache, split))


def test_splits_are_drawn_at_random(digits: Cache) -> None:
    """By name alone; not the first or last images of the source's order."""
    numbers = np.array([int(name.removeprefix("digits_")) for name in ids(digits, "val")])
    assert abs(numbers.mean() - 898) < 120
    assert numbers.std() > 400


def test_published_splits_stay_as_they_are(digits: Cache) -> None:
    """Numbers of earlier runs depend on these splits."""
    assert {split: ids(digits, split)[:2] for split in SPLITS} == {
        "train": ["digits_1323", "digits_1002"],
        "val": ["digits_1335", "digits_0140"],
        "test": ["digits_1722", "digits_0458"],
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limit": 60}, "data.limit=.* asks for 20 images of one class; there are 10 left"),
        ({"validation_images": 60}, "data.validation_images=.* asks for 20"),
        ({"test_images": 60}, "data.test_images=.* asks for 20"),
        ({"num_classes": 2}, "have 3 classes; data.num_classes=2: give 3"),
        ({"num_classes": 4}, "have 3 classes; data.num_classes=4: give 3"),
        ({"channels": 1}, "data.channels=1, but the images have 3"),
    ],
)
def test_more_images_than_exist_are_a_user_error(make_track: Track, change: dict[str, Any], words: str) -> None:
    track = make_track(**change)
    with pytest.raises(UserError, match=words):
        track.open(None)
    assert not is_finished(track.folder / "latents")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 9}, "not a multiple of data.unshuffle=2"),
        ({"source": "digits", "flip": True}, "data.flip=true would mirror digits"),
    ],
)
def test_impossible_settings_are_user_errors(make_track: Track, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_track(**change)


# --- latents ------------------------------------------------------------------------------------------------


def test_latents_are_the_images(make_track: Track, cache: Cache, images: Path) -> None:
    from PIL import Image

    track = make_track()
    samples = cache.splits["train"][:5]
    x0 = cache.x0(samples)
    assert tuple(x0.shape[1:]) == track.latent_shape == (12, 4, 4)
    assert x0.min() >= -1
    assert x0.max() <= 1
    for sample, rgb in zip(samples, track.to_rgb(x0), strict=True):
        split, name, number = sample.sample_id.split("_")
        pixels = np.asarray(Image.open(images / split / name / f"{number}.png"))
        assert sample.class_id == ("cat", "dog", "emu").index(name)
        np.testing.assert_allclose(rgb.permute(1, 2, 0).numpy() * 255, pixels, atol=0.1)


def test_grey_images_reach_the_teacher_as_rgb(digits: Cache) -> None:
    track = digits_track("x")
    rgb = track.to_rgb(digits.x0(digits.splits["val"][:3]))
    assert rgb.shape == (3, 3, 8, 8)
    assert torch.equal(rgb[:, 0], rgb[:, 2])


# --- caches -------------------------------------------------------------------------------------------------


def test_tokens_are_the_teachers_of_the_same_image(make_track: Track, cache: Cache, teacher: Any) -> None:
    samples = cache.splits["val"]
    expected = teacher.tokens(make_track().to_rgb(cache.x0(samples))).x_BND
    tokens = cache.teacher_BND(samples)
    assert tokens is not None
    torch.testing.assert_close(tokens.float(), expected, rtol=0, atol=1e-3)
    assert cache.grids == {"": (2, 2)}


def test_the_mean_token_is_the_training_sets(cache: Cache) -> None:
    tokens = cache.teacher_BND(cache.splits["train"])
    assert tokens is not None
    torch.testing.assert_close(cache.mean_token(), tokens.double().mean((0, 1)).float(), rtol=0, atol=1e-3)


def test_the_mean_token_is_the_best_constant_answer(cache: Cache) -> None:
    """For unit tokens, 1 − cos to a constant is smallest along their mean m, where it is 1 − ‖m‖."""
    from urepa.method.losses.loss_math import token_loss

    tokens, mean = cache.teacher_BND(cache.splits["train"]), cache.mean_token()
    assert tokens is not None
    assert mean is not None
    best = token_loss(mean.expand_as(tokens), tokens).mean()
    assert best.item() == pytest.approx(1 - mean.norm().item(), abs=1e-3)
    random = torch.Generator().manual_seed(0)
    others = [mean + 0.1 * torch.randn(3, generator=random) for _ in range(10)]
    assert all(token_loss(other.expand_as(tokens), tokens).mean() > best for other in others)


def test_without_a_teacher_there_are_no_tokens(make_track: Track) -> None:
    cache = opened(make_track())
    assert cache.teacher_BND(cache.splits["val"]) is None
    assert cache.mean_token() is None


def test_a_cache_is_built_once(make_track: Track, teacher: Any) -> None:
    track = make_track()
    opened(track, teacher)
    before = {p: p.stat().st_mtime_ns for p in track.folder.rglob("*") if p.is_file() and p.name != "lock.mdb"}
    opened(track, teacher)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_a_missing_cache_is_an_error_where_it_may_not_be_built(make_track: Track, teacher: Any) -> None:
    with pytest.raises(UserError, match=r"there is no cache at .*latents; run `python -m urepa.preprocess"):
        make_track(build_on_first_use=False).open(None)
    opened(make_track())
    with pytest.raises(UserError, match=r"there is no cache at .*tokens_mean-colour_8_2x2"):
        make_track(build_on_first_use=False).open(teacher)


def test_a_cache_that_was_made_differently_names_what_differs(make_track: Track) -> None:
    opened(make_track())
    with pytest.raises(UserError, match=r"made differently \(unshuffle: 2 there, 4 here\)"):
        make_track(unshuffle=4).open(None)


def test_tokens_of_another_teacher_name_what_differs(make_track: Track, teacher: Any) -> None:
    track = make_track()
    opened(track, teacher)
    (folder,) = track.folder.glob("tokens_*")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["teacher"]["image_size"] = 16
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"made differently \(teacher.image_size: 16 there, 8 here\)"):
        track.open(teacher)


def test_an_interrupted_build_is_made_again(make_track: Track, teacher: Any) -> None:
    class Dies(type(teacher)):  # type: ignore[misc]
        def tokens(self, images: Any) -> Any:
            raise KeyboardInterrupt

    track = make_track()
    with pytest.raises(KeyboardInterrupt):
        track.open(Dies())
    cache = track.open(teacher)
    assert cache.teacher_BND(cache.splits["val"]) is not None
    cache.close()


def test_an_interrupted_build_continues_where_it_stopped(
    make_track: Track, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watched(type(teacher)):  # type: ignore[misc]
        def tokens(self, images: Any) -> Any:
            if len(seen) == 3:
                seen.append(0)
                raise KeyboardInterrupt
            seen.append(len(images))
            return super().tokens(images)

    monkeypatch.setattr(pixel_bucket_caches, "CHUNK", 8)
    track = make_track(flip=True)
    with pytest.raises(KeyboardInterrupt):
        track.open(Watched())
    cache = track.open(Watched())
    assert sum(seen) == 42 + 30  # each image once, and the training images' mirror images
    assert len(list(cache.tokens[""].keys())) == 42  # type: ignore[union-attr]
    cache.close()


def test_a_record_that_is_missing_is_made_again(make_track: Track, teacher: Any) -> None:
    track = make_track()
    opened(track, teacher)
    (folder,) = track.folder.glob("tokens_*")
    with lmdb.open(str(folder), map_size=2**30) as env, env.begin(write=True) as txn:
        txn.delete(b"train_cat_03")
    with pytest.raises(UserError, match=r"lacks 1 of 42 records \(first: 'train_cat_03'\); run `python -m urepa"):
        track.open(teacher)
    track.build(teacher)  # what that command does
    cache = opened(track, teacher)
    assert len(list(cache.tokens[""].keys())) == 42  # type: ignore[union-attr]


@pytest.mark.parametrize("file", ["train.csv", "val.csv", "tokens_mean-colour_8_2x2/mean_token.npy"])
def test_a_missing_file_is_named(make_track: Track, teacher: Any, file: str) -> None:
    track = make_track()
    opened(track, teacher)
    (track.folder / file).unlink()
    with pytest.raises(UserError, match=f"there is no .*{file}; put it back"):
        opened(track, teacher).mean_token()


def test_a_changed_split_is_named(make_track: Track) -> None:
    track = make_track()
    opened(track)
    file = track.folder / "train.csv"
    file.write_text(file.read_text().replace(",0,", ",1,", 1))
    with pytest.raises(UserError, match=r"train.csv has changed since the caches were made from it"):
        track.open(None)


def test_one_process_after_another_gets_the_lock(make_track: Track) -> None:
    track = make_track()
    track.build(None)
    made = Store(track.folder / "latents").manifest
    track.build(None)
    assert Store(track.folder / "latents").manifest == made


def test_each_rule_of_positions_has_a_store_of_its_own() -> None:
    """Also with several teachers at once. Stores of earlier versions, which use transformers' rule, keep their
    names."""
    track = digits_track("x")
    teachers = {rule: ViTNetwork("dinov2", "dino", 224, 14, [16, 16], 32, rule) for rule in RULES}
    names = {rule: folder.name for rule, folder in track.tokens_folders(SeveralTeachers(teachers)).items()}
    assert names["transformers"] == "tokens_dino_224_16x16"
    assert len(set(names.values())) == len(RULES)
    native = ViTNetwork("dinov2", "dino", 518, 14, [16, 16], 32, "meta")
    assert track.tokens_folders(native)[""].name == "tokens_dino_518_16x16"
