"""Images and captions in tar shards: which members form a sample, and what is refused in one line."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from captioned_sources import members_of, write_tar
from PIL import Image

from urepa.core.errors import UserError
from urepa.data.lists.classes import count_classes
from urepa.data.sources.caption_text import captions_of
from urepa.data.sources.image_sources import SOURCES
from urepa.data.sources.source_identity import Listing
from urepa.data.sources.source_image import SourceImage

Members = list[tuple[str, bytes]]


def image(value: int, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(content, kind)
    return content.getvalue()


MEMBERS = members_of([(f"{i:03d}", image(i), [f"caption {i}", "x"][: 1 + i % 2], i % 2) for i in range(4)])


def read(folder: Path) -> list[SourceImage]:
    return list(SOURCES["webdataset"](str(folder)))


def captions(folder: Path, column: str | None = None) -> list[list[str]]:
    return list(captions_of(read(folder), column).values())


def test_members_of_a_key_are_a_sample(tmp_path: Path) -> None:
    """The contents equal those that `tarfile` reads; nothing is written beside the shard."""
    shard = write_tar(tmp_path / "shard-0.tar", MEMBERS)
    rows = read(tmp_path)
    assert [(r.name, r.class_id, r.split, r.path) for r in rows] == [
        (f"shard-0_{i:03d}", i % 2, "all", f"shard-0.tar[{i:03d}]") for i in range(4)
    ]
    with tarfile.open(shard) as archive:
        for i, row in enumerate(rows):
            content = archive.extractfile(f"{i:03d}.png")
            assert row.open is not None
            assert content is not None
            assert row.open().read() == content.read()
            assert (row.load() == i).all()
    assert captions(tmp_path) == [["caption 0"], ["caption 1", "x"], ["caption 2"], ["caption 3", "x"]]
    assert os.listdir(tmp_path) == ["shard-0.tar"]


def test_keys_end_at_the_first_dot_and_members_lie_in_any_order(tmp_path: Path) -> None:
    long = "a" * 150  # more than a plain header holds
    members: Members = [
        ("./a/b.JPG", image(1, "JPEG")),
        ("a/c.seg.png", image(9)),
        (f"{long}.webp", image(2, "WEBP")),
        ("a/c.jpeg", image(3, "JPEG")),
        ("a/c.txt", b"\xef\xbb\xbfthree\r\n\r\nthird\r\n"),
        ("a/b.txt", "one".encode("utf-16")),
        (f"{long}.txt", "قطة".encode()),
        (".hidden.png", b""),
        ("__meta__.json", b"{}"),
        ("d.npy", b"0"),
    ]
    write_tar(tmp_path / "s.tar", members)
    assert [row.name for row in read(tmp_path)] == ["s_a_b", f"s_{long}", "s_a_c"]
    assert captions(tmp_path) == [["one"], ["قطة"], ["three", "third"]]


def test_ignored_members_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "s.tar", [*MEMBERS, ("000.npy", b"0"), ("9.txt", b"no image")])
    with tarfile.open(tmp_path / "s.tar", "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    listing = Listing("webdataset", str(tmp_path), {})
    assert len(list(listing)) == 4
    listing.print_left_out(0, "")
    said = "left out: 2 members of tar files of kinds that are not read (.npy 1, link 1), 1 sample without an image\n"
    assert capsys.readouterr().out == said


def test_splits_follow_from_the_shards_names(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "val-0"):
        write_tar(tmp_path / f"{name}.tar", MEMBERS)
    assert [(r.split, r.name) for r in read(tmp_path)][::4] == [
        ("train", "train-0_000"),
        ("train", "train-1_000"),
        ("test", "val-0_000"),
    ]
    facts = []
    for _ in range(2):
        listing = Listing("webdataset", str(tmp_path), {})
        list(listing)
        facts.append(listing.facts())
        write_tar(tmp_path / "train-0.tar", [*MEMBERS, ("9.png", image(9)), ("9.txt", b"x"), ("9.cls", b"0")])
    assert facts[0] != facts[1]
    assert facts[0].keys() == {"source", "count", "listing_sha256", "files_sha256"}


def test_labels_are_optional_for_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [(n, c) for n, c in MEMBERS if not n.endswith(".cls")])
    assert {row.class_id for row in read(tmp_path)} == {0}
    assert count_classes("webdataset", str(tmp_path), tmp_path / "none") == 1
    write_tar(tmp_path / "s.tar", MEMBERS)
    with pytest.raises(UserError, match="are not counted; give data.num_classes=N"):
        count_classes("webdataset", str(tmp_path), tmp_path / "none")


def as_json(value: object, **members: bytes) -> Members:
    return [("0.png", image(0)), ("0.json", json.dumps(value).encode()), *((f"0.{k}", v) for k, v in members.items())]


def test_captions_in_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", as_json({"caption": " one ", "url": "u"}))
    assert captions(tmp_path) == [["one"]]
    assert captions(tmp_path, "url") == [["u"]]
    write_tar(tmp_path / "s.tar", as_json({"captions": ["one", "two"]}))
    assert captions(tmp_path) == [["one", "two"]]
    write_tar(tmp_path / "s.tar", as_json({"blip": "long"}, txt=b"short"))  # as img2dataset writes both
    assert captions(tmp_path) == [["short"]]
    assert captions(tmp_path, "blip") == [["long"]]


FAULTS: dict[str, tuple[Members, str]] = {
    "no caption": ([*MEMBERS, ("9.png", image(9)), ("9.cls", b"0")], r"^s\.tar\[9\] has no caption \(1 of 5 images"),
    "two images": ([*MEMBERS, ("000.jpg", image(9, "JPEG"))], r"s\.tar has the key 000 with more than one image"),
    "two texts": ([*MEMBERS, ("000.txt", b"x")], r"s\.tar has the key 000 with more than one \.txt; leave one there$"),
    "above": ([("../../0.png", image(0))], r"s\.tar has a member \.\./\.\./0\.png, which is no path within a folder"),
    "absolute": ([("/tmp/\x1b0.png", image(0))], r"s\.tar has a member /tmp/\?0\.png, which is no path"),
    "windows": ([("..\\0.png", image(0))], r"s\.tar has a member \.\.\\0\.png, which is no path"),
    "a class less": ([*MEMBERS, ("9.png", image(9))], r"^s\.tar\[9\] is the first sample without a \.cls"),
    "a class's name": ([("0.png", image(0)), ("0.cls", b"cat")], r"^s\.tar\[0\]: its \.cls is b'cat', not the number"),
    "a long key": ([("a/" * 200 + "0.png", image(0))], "its key is longer than the 400 bytes"),
    "empty": ([("0.png", image(0)), ("0.txt", b" \n")], r"^s\.tar\[0\] has no caption"),
    "no text": ([("0.png", image(0)), ("0.txt", b"caf\xe9")], r"^s\.tar\[0\] \.txt is no UTF-8 text"),
    "NUL": ([("0.png", image(0)), ("0.txt", "a".encode("utf-16-le"))], r"^s\.tar\[0\] \.txt has a NUL character"),
    "no JSON": ([("0.png", image(0)), ("0.json", b"{")], r"^s\.tar\[0\]: its \.json is no JSON"),
    "a list": (as_json(["a"]), r"^s\.tar\[0\]: its \.json is list, not a mapping"),
    "two keys": (as_json({"text": "a", "caption": "b"}), r"^s\.tar\[0\] \.json has text and caption; say which"),
    "no key": (as_json({"url": "a"}), r"^s\.tar\[0\] \.json has none of text, caption, captions; .*there are: url$"),
    "a number": (as_json({"text": 3}), r"^s\.tar\[0\]: a caption is 3, no text"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported_in_one_line_with_the_shard(tmp_path: Path, name: str) -> None:
    members, said = FAULTS[name]
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(UserError, match=said) as error:
        captions(tmp_path)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["s.tar"]


CUT = ("a header", "half a header", "half a file", "no end", "garbage", "a bad end", "zip", "more", "none")


@pytest.mark.parametrize("left", CUT)
def test_an_incomplete_shard_is_refused(tmp_path: Path, left: str) -> None:
    """`tarfile` reads most of these as whole shards with fewer members."""
    shard = write_tar(tmp_path / "s.tar", [("0.png", image(0)), ("1.png", image(1))])
    content = shard.read_bytes()
    second = content.index(b"1.png")
    end = second + 512 + (len(image(1)) + 511) // 512 * 512
    cut = {
        "a header": content[:second],
        "half a header": content[: second + 100],
        "half a file": content[: second + 512 + 20],
        "no end": content[:end],
        "garbage": content[:second] + b"x" * 512 + content[second + 512 :],
        "a bad end": content[:second] + b"x" * 512 + bytes(1024),
        "zip": b"PK\x03\x04" + b"x" * 2000,
        "more": content[: end + 1024] + content,
        "none": b"",
    }[left]
    shard.write_bytes(cut)
    with pytest.raises(UserError, match=rf"^{shard} is no whole tar file \(.+\); copy it again$"):
        read(tmp_path)


def test_a_shard_that_is_cut_after_it_was_listed_cannot_be_read(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", MEMBERS)
    row = read(tmp_path)[-1]
    os.truncate(shard, 3000)
    with pytest.raises(OSError, match="ends early"):
        row.load()


def test_a_folder_without_shards_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no \*.tar to train on .*data.source=webdataset"):
        read(tmp_path)
    (tmp_path / "s.tar.gz").touch()
    with pytest.raises(UserError, match="has s.tar.gz; unpack it to a .tar"):
        read(tmp_path)
