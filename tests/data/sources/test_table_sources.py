"""Images and captions of parquet files: columns in Hugging Face's layout, and mistakes, each reported in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from captioned_sources import Rows, write_parquet
from PIL import Image
from pyarrow.parquet import write_table

from urepa.core.errors import UserError
from urepa.data.lists.classes import count_classes
from urepa.data.sources.caption_text import captions_of
from urepa.data.sources.image_sources import SOURCES
from urepa.data.sources.source_identity import Listing
from urepa.data.sources.source_image import SourceImage


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the caches that `datasets` makes in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def png(value: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


ROWS: Rows = [(str(i), png(i), [f"caption {i}"] + ["another"] * (i == 1), i % 2) for i in range(3)]


def read(folder: Path) -> list[SourceImage]:
    return list(SOURCES["parquet"](str(folder)))


def captions(folder: Path, column: str | None = None) -> dict[str, list[str]]:
    return captions_of(read(folder), column)


def write(folder: Path, **columns: Any) -> Path:
    """Writes FOLDER/train.parquet with three images and further columns."""
    folder.mkdir(exist_ok=True)
    write_table(pa.table({"image": [png(i) for i in range(3)]} | columns), folder / "train.parquet")
    return folder


@pytest.mark.parametrize("plain", [False, True])
def test_images_are_structs_or_bytes(tmp_path: Path, plain: bool) -> None:
    write_parquet(tmp_path / "in" / "train-00000.parquet", ROWS, plain=plain)
    rows = read(tmp_path / "in")
    assert [int(row.load()[0, 0, 0]) for row in rows] == [0, 1, 2]
    assert rows[0].load().shape == (4, 6, 3)
    assert [row.open().read() for row in rows if row.open is not None] == [png(i) for i in range(3)]
    assert [(row.name, row.path, row.class_id) for row in rows] == [
        (f"train_{i:06d}", f"train[{i}]", i % 2) for i in range(3)
    ]


@pytest.mark.parametrize("column", ["text", "caption", "captions"])
def test_captions_are_found_by_the_usual_names(tmp_path: Path, column: str) -> None:
    write_parquet(tmp_path / "in" / "train.parquet", ROWS, column)
    expected = {"train_000000": ["caption 0"], "train_000001": ["caption 1", "another"], "train_000002": ["caption 2"]}
    assert captions(tmp_path / "in") == expected
    assert captions(tmp_path / "in", column) == expected


def test_a_caption_is_a_text_or_a_list_of_texts(tmp_path: Path) -> None:
    texts = ["\r\n one line\nand another ", "قطة", "👩‍👩‍👧"]
    found = captions(write(tmp_path / "in", text=texts, url=["a", "b", "c"]))
    assert list(found.values()) == [["one line\nand another"], ["قطة"], ["👩‍👩‍👧"]]
    assert list(captions(tmp_path / "in", "url").values()) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("columns", "asked", "said"),
    [
        (
            {"text": "abc", "caption": "abc"},
            None,
            "has text and caption; .*; there are: image, text, caption$",
        ),
        ({"blip": "abc"}, None, "has none of text, caption, captions; say which .*; there are: image, blip$"),
        ({"text": "abc"}, "blip", r"has no blip \(data.caption_column\); there are: image, text$"),
        ({"text": "abc", "n": [1, 2, 3]}, "n", r"^train\[0\]: a caption is 1, no text; name the column"),
        ({"text": ["a", None, "c"]}, None, r"^train\[1\] has no caption \(1 of 3 images have none\)"),
        ({"text": [["a"], [], ["b"]]}, None, r"^train\[1\] has no caption"),
        ({"text": ["a", "b", " \r\n"]}, None, r"^train\[2\] has an empty caption"),
        ({"text": [["a"], ["b", ""], ["c"]]}, None, r"^train\[1\] has an empty caption"),
        ({"text": ["a", "b\0", "c"]}, None, r"^train\[1\] has a NUL character"),
    ],
)
def test_mistakes_in_columns(tmp_path: Path, columns: dict[str, Any], asked: str | None, said: str) -> None:
    given = {name: list(values) for name, values in columns.items()}
    with pytest.raises(UserError, match=said) as error:
        captions(write(tmp_path / "in", **given), asked)
    assert "\n" not in str(error.value)


def test_without_labels_all_are_of_one_class_if_there_are_texts(tmp_path: Path) -> None:
    assert {row.class_id for row in read(write(tmp_path / "texts", blip=["a", "b", "c"]))} == {0}
    assert count_classes("parquet", str(tmp_path / "texts"), tmp_path / "none") == 1
    with pytest.raises(UserError, match=r"has columns \['image', 'n'\]; give one with image and label"):
        read(write(tmp_path / "no", n=[1, 2, 3]))
    with pytest.raises(UserError, match="the column label holds other values than numbers of classes"):
        read(write(tmp_path / "names", label=["cat", "dog", "cat"]))
    with pytest.raises(UserError, match="are not counted; give data.num_classes=N"):
        count_classes("parquet", str(tmp_path / "names"), tmp_path / "none")


def test_splits_follow_from_file_names_or_are_drawn_by_the_track(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "in" / "0000.parquet", ROWS[:2])
    write_parquet(tmp_path / "in" / "0001.parquet", ROWS[2:])
    assert [(row.split, row.name[:6]) for row in read(tmp_path / "in")] == [("train", "train_")] * 3
    (tmp_path / "in" / "0000.parquet").rename(tmp_path / "in" / "train-0.parquet")
    (tmp_path / "in" / "0001.parquet").rename(tmp_path / "in" / "val-0.parquet")
    write_parquet(tmp_path / "in" / "extra.parquet", ROWS)
    assert [row.split for row in read(tmp_path / "in")] == ["train", "train", "test"]
    Listing("parquet", str(tmp_path / "in"), {}).print_left_out(0, "")
    assert capsys.readouterr().out == "left out: 1 file of no split's name (extra.parquet)\n"
    (tmp_path / "in" / "train-0.parquet").unlink()
    with pytest.raises(UserError, match=r"has no train\*.parquet"):
        read(tmp_path / "in")


def test_a_row_without_an_image_counts_as_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "in", text=["a", "b", "c"])
    images = pa.array([{"bytes": png(1), "path": None}, None, {"bytes": None, "path": None}])
    write_table(pa.table({"image": images, "text": ["a", "b", "c"]}), tmp_path / "in" / "train.parquet")
    rows = read(tmp_path / "in")
    assert rows[0].load()[0, 0, 0] == 1
    for row in rows[1:]:
        with pytest.raises(ValueError, match="the row has no image"):
            row.load()


def test_a_table_without_images_is_reported_in_one_line(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "train-0.parquet", ROWS)
    write_parquet(tmp_path / "in" / "train-1.parquet", ROWS, "other")
    with pytest.raises(UserError, match=r"^the parquet files of \S* cannot be read together \(.+\)$") as error:
        read(tmp_path / "in")
    assert "\n" not in str(error.value)
    folder = tmp_path / "numbers"
    folder.mkdir()
    write_table(pa.table({"image": [1, 2], "text": ["a", "b"]}), folder / "train.parquet")
    with pytest.raises(UserError, match="the column image holds .*, not encoded images"):
        read(folder)
