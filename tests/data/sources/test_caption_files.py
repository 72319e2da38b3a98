"""Captions beside images, in text files and metadata: what is read, and mistakes, each reported in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from urepa.core.errors import UserError
from urepa.data.sources.caption_files import read_captions
from urepa.data.sources.image_sources import folder as rows_of

ARABIC, FAMILY = "قطة على السرير", "👩‍👩‍👧 \u200fat home"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a/0.png, a/1.png and b/0.png."""
    for name in ("a/0", "a/1", "b/0"):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(file)
    return tmp_path


def read(root: Path) -> dict[str, list[str]]:
    return read_captions(root, list(rows_of(str(root))))


def write(root: Path, **texts: str | bytes) -> Path:
    """a_0="text" writes a/0.txt."""
    for name, text in texts.items():
        content = text.encode() if isinstance(text, str) else text
        (root / name.replace("_", "/")).with_suffix(".txt").write_bytes(content)
    return root


def test_text_files_have_a_caption_a_line(root: Path) -> None:
    write(root, a_0="one\ntwo\n\n  three  \r\n \t\r\n", a_1=ARABIC, b_0=f"{FAMILY}\rold line end")
    assert read(root) == {
        "all_a_0": ["one", "two", "three"],
        "all_a_1": [ARABIC],
        "all_b_0": [FAMILY, "old line end"],
    }


def test_a_line_separator_of_unicode_is_part_of_a_caption(root: Path) -> None:
    write(root, a_0="left\u2028right\x0bup", a_1="x", b_0="y")
    assert read(root)["all_a_0"] == ["left\u2028right\x0bup"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_text(root: Path, encoding: str) -> None:
    write(root, a_0=f"{ARABIC}\r\ncat".encode(encoding), a_1="x", b_0="y")
    assert read(root)["all_a_0"] == [ARABIC, "cat"]


def test_characters_are_kept_as_they_are_written(root: Path) -> None:
    """Composed or decomposed characters, control characters and marks of direction; two ways to write a letter make two
    captions."""
    composed, apart, control = "caf\u00e9", "cafe\u0301", "\u202bשלום\u202c\x1b[31m\x85end"
    write(root, a_0=composed, a_1=apart, b_0=control)
    assert read(root) == {"all_a_0": [composed], "all_a_1": [apart], "all_b_0": [control]}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_of_windows(root: Path, name: str) -> None:
    """With a byte order mark and Windows line ends."""
    rows = [("a/0.png", ARABIC), ("a/1.png", "two"), ("b/0.png", FAMILY)]
    lines = [json.dumps({"file_name": file, "text": text}) for file, text in rows]
    if name.endswith("csv"):
        lines = ["file_name,text", *(f"{file.replace('/', chr(92))},{text}" for file, text in rows)]
    (root / name).write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert read(root) == {"all_a_0": [ARABIC], "all_a_1": ["two"], "all_b_0": [FAMILY]}


def test_metadata_as_hugging_face_has_it(root: Path) -> None:
    """In a class folder with its own file names, or at the root with paths. Rows of one file are added up, and so are
    the entries of a list."""
    (root / "a" / "metadata.csv").write_text('\ufefffile_name,text\r\n0.png,"one, with a\ncomma"\r\n1.png,two\r\n')
    rows = [{"file_name": "b/0.png", "text": "three"}, {"file_name": "b/0.png", "text": [" four ", "five"], "n": 1}]
    (root / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert read(root) == {"all_a_0": ["one, with a\ncomma"], "all_a_1": ["two"], "all_b_0": ["three", "four", "five"]}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"a_0": "x"}, r"a/1\.png has no caption \(2 of 3 images have none\); give each a NAME\.txt"),
        ({"a_0": "x", "a_1": " \n\n", "b_0": "y"}, r"a/1\.png has an empty caption: 1\.txt has no text"),
        ({"a_0": "x", "a_1": b"caf\xe9", "b_0": "y"}, r"1\.txt is no UTF-8 text .*; save it as UTF-8"),
        ({"a_0": "x", "a_1": "two".encode("utf-16-le"), "b_0": "y"}, r"1\.txt has a NUL character, as UTF-16 without"),
    ],
)
def test_mistakes_in_text_files(root: Path, texts: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(write(root, **texts))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a/0.png", "text": "x"', "metadata.jsonl, line 1 is no JSON"),
        ("metadata.jsonl", '{"file_name": "a/0.png"}', "line 1 has no file_name and text"),
        ("metadata.jsonl", '{"file_name": "a/0.png", "text": 3}', "line 1: file_name and text are not both text"),
        ("metadata.jsonl", '{"file_name": "a/0.png", "text": "\\ud800"}', "is no Unicode text"),
        ("metadata.jsonl", '{"file_name": "a/0.png", "text": "x\\u0000"}', "line 1 has a NUL character"),
        ("metadata.jsonl", '{"file_name": "a/0.png", "text": "  "}', r"a/0\.png has an empty caption: its text in the"),
        ("metadata.csv", "file,text\na/0.png,x\n", "has no columns file_name and text"),
        ("metadata.csv", "file_name,text\na/0.png\n", "row 1: file_name and text are not both text"),
        ("metadata.csv", "file_name,text\nb/0.png,x\n", r"b/0\.png has captions in 0\.txt and in a metadata file"),
    ],
)
def test_mistakes_in_metadata(root: Path, name: str, content: str, said: str) -> None:
    write(root, a_1="x", b_0="y")
    (root / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read(root)


def test_two_metadata_files_are_one_too_many(root: Path) -> None:
    write(root, a_0="x", a_1="x", b_0="y")
    for name in ("metadata.csv", "metadata.jsonl"):
        (root / "a" / name).write_text("file_name,text\n")
    with pytest.raises(UserError, match="has metadata.jsonl and metadata.csv; keep one"):
        read(root)
