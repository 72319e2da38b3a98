"""The same images from a folder and from parquet files."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from urepa.core.errors import UserError
from urepa.data.sources.image_sources import SOURCES


@pytest.fixture(scope="module")
def parquet_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder's images as `datasets` writes them."""
    import datasets
    from PIL import Image

    root = tmp_path_factory.mktemp("parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "hf")
        for split in ("train", "test"):
            paths = sorted((images / split).glob("*/*.png"))
            columns = {
                "img": [Image.open(p) for p in paths],
                "label": [("cat", "dog", "emu").index(p.parent.name) for p in paths],
            }
            features = datasets.Features(
                {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])}
            )
            part = datasets.Dataset.from_dict(columns, features=features)
            part.to_parquet(root / f"{split}-00000-of-00001.parquet")
        yield root


def test_a_folders_classes_are_numbered_by_the_alphabet(images: Path) -> None:
    rows = list(SOURCES["folder"](str(images)))
    assert Counter((row.split, row.class_id) for row in rows) == {
        (split, class_id): count for split, count in (("train", 12), ("test", 4)) for class_id in range(3)
    }
    assert len({row.name for row in rows}) == len(rows) == 48
    assert all(row.class_id == ("cat", "dog", "emu").index(row.name.split("_")[1]) for row in rows)
    pixels = rows[0].load()
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)


def test_equal_file_names_are_told_apart(images: Path, tmp_path: Path) -> None:
    """cat/cat_1.png in train and in test, as in many data sets, are two images."""
    picture = (images / "train/cat/00.png").read_bytes()
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / f"{name}_1.png").write_bytes(picture)
            (tmp_path / split / name / "2.png").write_bytes(picture)
    names = [row.name for row in SOURCES["folder"](str(tmp_path))]
    assert len(set(names)) == len(names) == 8


def test_imagenets_own_names_are_kept(images: Path, tmp_path: Path) -> None:
    picture = (images / "train/cat/00.png").read_bytes()
    for split, file in (("train", "n01440764_10026"), ("val", "ILSVRC2012_val_00000293")):
        (tmp_path / split / "n01440764").mkdir(parents=True)
        (tmp_path / split / "n01440764" / f"{file}.png").write_bytes(picture)
    names = [(row.split, row.name) for row in SOURCES["folder"](str(tmp_path))]
    assert names == [("train", "n01440764_10026"), ("test", "ILSVRC2012_val_00000293")]


def test_a_folders_other_files_are_left_out(images: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "notes.txt").write_text("no image")
        (tmp_path / split / "cat" / "a.PNG").write_bytes((images / "train/cat/00.png").read_bytes())
    assert [row.name for row in SOURCES["folder"](str(tmp_path))] == ["train_cat_a", "test_cat_a"]


def test_parquet_files_give_the_same_images(images: Path, parquet_images: Path) -> None:
    from_folder = sorted((row.split, row.class_id, row.load().tobytes()) for row in SOURCES["folder"](str(images)))
    rows = list(SOURCES["parquet"](str(parquet_images)))
    assert sorted((row.split, row.class_id, row.load().tobytes()) for row in rows) == from_folder
    assert len({row.name for row in rows}) == 48


def test_a_test_split_without_labels_is_passed_over_for_validation(parquet_images: Path, tmp_path: Path) -> None:
    """ImageNet's layout: train, validation, and a test split whose labels are all -1."""
    import datasets

    shutil.copy(next(parquet_images.glob("train*")), tmp_path)
    shutil.copy(next(parquet_images.glob("test*")), tmp_path / "validation-00000-of-00001.parquet")
    pixels = datasets.Array3D((8, 8, 3), "uint8")
    hidden = {"img": np.zeros((5, 8, 8, 3), np.uint8).tolist(), "label": [-1] * 5}
    features = datasets.Features({"img": pixels, "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(hidden, features=features).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    rows = list(SOURCES["parquet"](str(tmp_path)))
    counted = Counter((row.split, row.class_id) for row in rows)
    assert counted == {(s, c): n for s, n in (("train", 12), ("test", 4)) for c in range(3)}
    assert {row.name.split("_")[0] for row in rows} == {"train", "validation"}


def test_a_track_reads_parquet_files(parquet_images: Path, make_track: object) -> None:
    track = make_track(source="parquet", images=str(parquet_images))  # type: ignore[operator]
    cache = track.open(None)
    assert {split: len(samples) for split, samples in cache.splits.items()} == {"train": 30, "val": 6, "test": 6}
    assert tuple(cache.x0(cache.splits["val"]).shape) == (6, 12, 4, 4)
    cache.close()


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    rows, bunch = list(SOURCES["digits"]("")), load_digits()
    assert [row.class_id for row in rows] == bunch.target.tolist()
    assert np.array_equal(rows[17].load(), np.round(bunch.images[17] * 255 / 16).astype(np.uint8))


def test_parquet_files_without_images_are_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"picture": [1], "label": [0]}).to_parquet(tmp_path / f"{split}-0.parquet")
    with pytest.raises(UserError, match=r"has columns \['picture', 'label'\]"):
        list(SOURCES["parquet"](str(tmp_path)))


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_an_empty_folder_is_a_user_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data.images={tmp_path}.*data.source={source}"):
        list(SOURCES[source](str(tmp_path)))


def test_two_images_with_one_id_are_refused(images: Path) -> None:
    from urepa.data.sources.image_sources import refuse_duplicates

    rows = list(SOURCES["folder"](str(images)))
    refuse_duplicates(rows)
    twice = replace(rows[3], path="another/place.png")
    with pytest.raises(UserError, match=f"^{rows[3].path} and another/place.png would both have the sample id"):
        refuse_duplicates([*rows, twice])


def test_class_folders_alone_leave_the_split_to_the_track(images: Path, make_track: Any) -> None:
    rows = list(SOURCES["folder"](str(images / "train")))
    assert {(row.split, row.class_id, row.path.partition("/")[0]) for row in rows} == {
        ("all", class_id, name) for class_id, name in enumerate(("cat", "dog", "emu"))
    }
    assert rows[0].name == "all_cat_00"
    cache = make_track(images=str(images / "train")).open(None)
    ids = {split: {s.sample_id for s in samples} for split, samples in cache.splits.items()}
    assert {split: len(own) for split, own in ids.items()} == {"train": 24, "val": 6, "test": 6}
    assert len(set.union(*ids.values())) == 36
    cache.close()


def test_photographs_are_cropped_to_their_central_square(make_track: Any, tmp_path: Path) -> None:
    from PIL import Image

    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / split / "cat" / "a.png")
    track = make_track(images=str(tmp_path), validation_images=0, test_images=0, num_classes=1)
    cache = track.open(None)
    image = track.to_rgb(cache.x0(cache.splits["train"]))[0]
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy() * 255, wide[:, 8:16], atol=0.1)
    cache.close()


def test_training_folders_alone_leave_the_validation_to_the_track(
    images: Path, make_track: Any, tmp_path: Path
) -> None:
    """ImageNet's layout without a validation folder; a val/ without class folders beside it is reported."""
    shutil.copytree(images / "train", tmp_path / "train")
    rows = list(SOURCES["folder"](str(tmp_path)))
    assert Counter((row.split, row.class_id) for row in rows) == {("train", class_id): 12 for class_id in range(3)}
    cache = make_track(images=str(tmp_path)).open(None)
    assert {split: len(samples) for split, samples in cache.splits.items()} == {"train": 24, "val": 6, "test": 6}
    cache.close()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=f"{tmp_path}/val has images but no class folders; sort them into one folder"):
        list(SOURCES["folder"](str(tmp_path)))


@pytest.mark.parametrize("name", ["owner/set", "owner/set@main"])
def test_a_name_on_the_hub_is_not_taken_from_the_working_folder(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, tmp_path / "owner" / "set")
    with pytest.raises(UserError, match=r"owner/set is a folder here: give data.source=folder \(or parquet\)"):
        list(SOURCES["hub"](name))


def test_names_that_are_not_utf_8_are_refused(make_track: Any, images: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(images, tmp_path / "photos"))
    shutil.copy(root / "train/cat/00.png", os.path.join(os.fsencode(root / "train/cat"), "é.png".encode("latin-1")))
    with pytest.raises(UserError, match=r"the file name 'train/cat/\\udce9.png' is not UTF-8"):
        make_track(images=str(root)).open(None)
