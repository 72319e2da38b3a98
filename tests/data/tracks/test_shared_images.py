"""Splits share no image: tracks over images of which some are equal."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from urepa.core.errors import UserError
from urepa.core.random_draws import unit_interval
from urepa.data.cache import SPLITS
from urepa.data.lists.equal_images import EqualImages
from urepa.data.sources import equal_files
from urepa.data.stores.record_reading import Store


def pixels_of(cache: Any, split: str) -> list[bytes]:
    return [x.tobytes() for x in cache.x0(cache.splits[split]).numpy()]


def assert_nothing_shared(cache: Any) -> None:
    own = {split: set(pixels_of(cache, split)) for split in SPLITS}
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not own[a] & own[b], f"{a} and {b}"


@pytest.fixture
def photos(images: Path, tmp_path: Path) -> Path:
    """PHOTOS/{cat,dog,emu}/NN.png, 12 per class, all different."""
    return Path(shutil.copytree(images / "train", tmp_path / "photos"))


def copy_as_bmp(file: Path, to: Path) -> None:
    """Copies an image: the same pixels in a file of other bytes."""
    Image.open(file).save(to)


def test_equal_images_are_drawn_for_one_split(
    photos: Path, make_track: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight of 36 images have copies, some in another class, so that without the rule splits would share some. All
    splits have the requested size."""
    for i in range(8):
        name = ("cat", "dog", "emu")[i % 3]
        other = "dog" if i == 3 else name
        copy_as_bmp(photos / name / f"{i:02d}.png", photos / other / f"copy{i}.bmp")
    cache = make_track(images=str(photos)).open(None)
    assert_nothing_shared(cache)
    assert {split: len(cache.splits[split]) for split in SPLITS} == {"train": 32, "val": 6, "test": 6}
    assert Counter(s.class_id for s in cache.splits["val"]) == {0: 2, 1: 2, 2: 2}
    held = pixels_of(cache, "val") + pixels_of(cache, "test")
    assert len(set(held)) == len(held)
    out = capsys.readouterr().out
    assert out.count("equal images: ") == 1
    assert " stay in training with images that they equal (" in out
    assert "left out" not in out
    cache.close()


@pytest.mark.parametrize("limit", [6, 12, None])
def test_records_are_those_of_the_samples(photos: Path, make_track: Callable[..., Any], limit: int | None) -> None:
    """With fewer training images, one that moves to training replaces another, whose latent is removed."""
    for name in ("cat", "dog", "emu"):
        for i in range(12):
            copy_as_bmp(photos / name / f"{i:02d}.png", photos / name / f"z{i:02d}.bmp")
    for i in range(9):  # enough that have no equal
        for name in ("cat", "dog", "emu"):
            pixels = np.full((8, 8, 3), 10 * i + ord(name[0]), np.uint8)
            Image.fromarray(pixels).save(photos / name / f"own{i}.png")
    track = make_track(images=str(photos), limit=limit)
    cache = track.open(None)
    assert_nothing_shared(cache)
    listed = {sample_id for split in SPLITS for sample_id in cache.splits[split].ids()}
    assert len(listed) == (99 if limit is None else limit + 12)
    cache.close()
    store = Store(track.folder / "latents")
    assert set(store.keys()) == listed
    store.close()


def test_the_publishers_test_images_that_were_trained_on_are_left_out(
    images: Path, make_track: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one class all test images but the one drawn last are copies of training images. The other splits are
    unchanged; if too few images are left, it is an error."""
    plain = make_track(root=str(tmp_path / "plain")).open(None)
    before = {split: list(plain.splits[split].ids()) for split in SPLITS}
    plain.close()
    root = Path(shutil.copytree(images, tmp_path / "mine"))
    *copied, last = sorted(range(4), key=lambda i: unit_interval("split", f"test_cat_{i:02d}"))
    for i in copied:
        (root / "test" / "cat" / f"{i:02d}.png").unlink()
        copy_as_bmp(root / "train" / "cat" / f"{i:02d}.png", root / "test" / "cat" / f"{i:02d}.bmp")
    capsys.readouterr()
    cache = make_track(images=str(root), test_images=3).open(None)
    assert_nothing_shared(cache)
    for split in ("train", "val"):
        assert list(cache.splits[split].ids()) == before[split]
    assert [s.path for s in cache.splits["test"] if s.class_id == 0] == [f"test/cat/{last:02d}.png"]
    cache.close()
    first = f"(test/cat/{copied[0]:02d}.bmp = train/cat/{copied[0]:02d}.png)"
    said = f"equal images: 3 of the images that the source keeps apart equal others and are left out {first}\n"
    assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="data.test_images=6 asks for 2 images of one class; there are 1 left"):
        make_track(images=str(root), test_images=6).open(None)


def test_buckets_are_compared_too(photos: Path, make_track: Callable[..., Any]) -> None:
    for name in ("cat", "dog", "emu"):
        for file in sorted((photos / name).glob("*.png"))[::2]:
            Image.open(file).resize((12, 6)).save(file)
        for i in range(4):
            copy_as_bmp(photos / name / f"{i:02d}.png", photos / name / f"copy{i}.bmp")
    track = make_track(images=str(photos), buckets=[[8, 8], [4, 8]], validation_images=9, test_images=9)
    caches = track.open(None)
    assert len(caches.buckets) == 2
    for bucket in caches.buckets:
        assert_nothing_shared(bucket)
    caches.close()


def test_caches_of_earlier_versions_stay_unchanged(
    photos: Path, make_track: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made without the rule, with equal images in several splits: they are opened and extended unchanged."""
    for name in ("cat", "dog", "emu"):
        for i in range(12):
            copy_as_bmp(photos / name / f"{i:02d}.png", photos / name / f"z{i:02d}.bmp")
    with monkeypatch.context() as patch:
        patch.setattr(EqualImages, "keep_apart", lambda self, splits, groups: False)
        before = make_track(images=str(photos)).open(None)
    lists = {split: list(before.splits[split].ids()) for split in SPLITS}
    with pytest.raises(AssertionError, match="train and"):
        assert_nothing_shared(before)
    before.close()
    track = make_track(images=str(photos), flip=True)  # more is made of them
    track.build(None)
    after = track.open(None)
    assert {split: list(after.splits[split].ids()) for split in SPLITS} == lists
    after.close()


# --- latent tracks ----------------------------------------------------------------------------------------------


def ids_of(root: Path, file: str) -> set[str]:
    return {line.partition(",")[0] for line in (root / file).read_text().splitlines()[1:]}


@pytest.fixture
def many(material: Path, tmp_path: Path) -> Path:
    """The photographs with copies: of a training image among the validation images, and of one within its own split."""
    root = Path(shutil.copytree(material / "photos", tmp_path / "photos"))
    shutil.copy(root / "train" / "china" / "0000.png", root / "val" / "china" / "copy.png")
    shutil.copy(root / "train" / "flower" / "0001.png", root / "train" / "flower" / "copy.png")
    return root


def test_a_copy_of_a_training_image_is_no_validation_image(
    build_of: Callable[..., Any], many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "root"
    build_of(place, f"data.images={many}", "data.val_images=null", "data.train_images=null").run("manifest")
    assert len(ids_of(place, "train_200k.csv")) == 65
    assert len(ids_of(place, "val_50k.csv")) == 16
    assert "test_china_copy" not in str(ids_of(place, "val_50k.csv"))
    out = capsys.readouterr().out
    said = "equal images: 1 of the images that the source keeps apart equal others and are left out "
    assert said + "(val/china/copy.png = train/china/0000.png)" in out
    assert json.loads((place / "track.json").read_text())["equal_images_apart"] == ["files"]


def test_equal_files_are_not_drawn_for_validation(build_of: Callable[..., Any], many: Path, tmp_path: Path) -> None:
    """Whatever their names are; otherwise the lists are unchanged."""
    shutil.rmtree(many / "val")
    (many / "train" / "flower" / "copy.png").unlink()
    build_of(tmp_path / "plain", f"data.images={many}", "data.train_images=null").run("manifest")
    plain = ids_of(tmp_path / "plain", "val_50k.csv")
    drawn = sorted(plain)[0]
    _, name, number = drawn.split("_")
    shutil.copy(many / "train" / name / f"{number}.png", many / "train" / name / "copy.png")
    build_of(tmp_path / "apart", f"data.images={many}", "data.train_images=null").run("manifest")
    found = ids_of(tmp_path / "apart", "val_50k.csv")
    assert drawn not in found
    assert len(found) == len(plain) == 16
    assert plain - found == {drawn}
    assert {drawn, f"train_{name}_copy"} <= ids_of(tmp_path / "apart", "train_200k.csv")


def test_many_files_are_not_compared_and_earlier_lists_are_continued(
    build_of: Callable[..., Any], many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (f"data.images={many}", "data.val_images=null", "data.train_images=null")
    with monkeypatch.context() as patch:
        patch.setattr(equal_files, "LOOKED_AT", 10)
        build_of(tmp_path / "root", *overrides).run("manifest")
    assert "test_china_copy" in ids_of(tmp_path / "root", "val_50k.csv")
    track = json.loads((tmp_path / "root" / "track.json").read_text())
    del track["equal_images_apart"]
    (tmp_path / "root" / "track.json").write_text(json.dumps(track))  # as an earlier version wrote it
    (tmp_path / "root" / "train_200k.csv").unlink()
    build_of(tmp_path / "root", *overrides).run("manifest")
    assert "test_china_copy" in ids_of(tmp_path / "root", "val_50k.csv")
