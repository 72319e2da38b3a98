"""A user's folder of images: what is read, and what is left out for which reason."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from urepa.core.errors import UserError
from urepa.data.sources import source_changes
from urepa.data.sources.image_folder import FORMER, count_left_out, readable
from urepa.data.sources.image_sources import SOURCES
from urepa.data.sources.source_identity import Listing


@pytest.fixture
def mess(images: Path, tmp_path: Path) -> Path:
    """Training images, in class folders alone, and files that are not images."""
    root = Path(shutil.copytree(images / "train", tmp_path / "mess"))
    cat, dog = root / "cat", root / "dog"
    for name in ("notes.txt", "more.txt", "clip.gif", "raw", ".hidden"):
        (cat / name).write_bytes(b"no image")
    (cat / "nested" / "deeper").mkdir(parents=True)
    (cat / "picture.png").mkdir()
    (root / "empty").mkdir()
    (root / ".cache").mkdir()
    shutil.copy(cat / "00.png", root / "loose.png")
    os.symlink("nowhere.png", cat / "dangling.png")
    os.symlink("loop.png", cat / "loop.png")
    os.symlink("00.png", cat / "linked.png")
    os.mkfifo(dog / "fifo.png")
    os.symlink("fifo.png", dog / "to_fifo.png")
    here = Path.cwd()
    os.chdir(dog)  # a socket's place may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket.png")
    finally:
        os.chdir(here)
    return root


def test_regular_files_alone_are_read_and_nothing_else_is_opened(mess: Path, tmp_path: Path) -> None:
    """Opening a FIFO would wait for ever."""
    rows = list(SOURCES["folder"](str(mess)))
    assert [r.path for r in rows if r.path[4:6] not in {f"{i:02d}" for i in range(12)}] == ["cat/linked.png"]
    assert len(rows) == 37
    assert next(r for r in rows if r.path == "cat/linked.png").load().tobytes() == rows[0].load().tobytes()
    source_changes.record("folder", str(mess), tmp_path / "caches")
    assert source_changes.changes("folder", str(mess), tmp_path / "caches") is None


def test_what_is_left_out_is_counted_by_reason(mess: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = Listing("folder", str(mess), {})
    listing.print_left_out(2, "data.test_images=6")
    assert capsys.readouterr().out == (
        "left out: 4 of formats that are not read (.txt 2, no suffix 1, .gif 1), 1 empty class (empty), "
        "1 dangling link, 2 nested folders, 1 link in a loop, 3 that are not regular files, "
        "1 image beside the class folders, 2 held-out images (data.test_images=6 are taken)\n"
    )


def test_nothing_is_reported_if_nothing_is_left_out(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not count_left_out(images, readable())
    Listing("folder", str(images), {}).print_left_out(0, "")
    Listing("digits", "scikit-learn", {}).print_left_out(0, "")
    assert capsys.readouterr().out == ""


def test_control_characters_in_a_name_are_escaped(images: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(images / "train", tmp_path / "mine"))
    (root / "\x1b[31mred").mkdir()
    os.mkdir(os.path.join(os.fsencode(root), b"caf\xe9"))
    said = str(count_left_out(root, readable()))
    assert said == "2 empty classes (?[31mred, caf\\udce9)"


@pytest.mark.parametrize(("name", "form"), [("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.AVIF", "AVIF")])
def test_other_suffixes_of_photographs_are_read(tmp_path: Path, name: str, form: str) -> None:
    if form not in Image.MIME and Image.init() and form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "cat" / name, format=form)
    (row,) = SOURCES["folder"](str(tmp_path))
    assert np.abs(row.load().astype(int) - 200).max() <= 2


def test_a_format_that_wants_a_plugin_is_named_with_it(images: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(images / "train", tmp_path / "mine"))
    (root / "cat" / "a.HEIC").write_bytes(b"")
    without = readable() - {".heic"}
    assert str(count_left_out(root, without)) == "1 of formats that are not read here (.heic 1: install pillow-heif)"
    shutil.rmtree(root / "dog")
    shutil.rmtree(root / "emu")
    for file in (root / "cat").glob("*.png"):
        file.unlink()
    if ".heic" not in readable():
        with pytest.raises(UserError, match=r"has neither CLASS/\* .*\(1 of formats .* here \(.heic 1: install"):
            list(SOURCES["folder"](str(root)))


def test_lists_of_earlier_versions_get_no_images_of_newly_supported_formats(
    images: Path, tmp_path: Path, make_track: Any
) -> None:
    """An earlier version ignored a.jfif: its track stays unchanged, also for a copy with other times."""
    root = Path(shutil.copytree(images, tmp_path / "mine"))
    shutil.copy(root / "train" / "cat" / "00.png", root / "train" / "cat" / "a.jfif")
    known = {"source": "folder", "count": 48, "listing_sha256": "of before"}
    assert Listing("folder", str(root), known).suffixes == FORMER
    assert len(list(Listing("folder", str(root), known))) == 48
    new = Listing("folder", str(root), {})
    assert len(list(new)) == 49
    assert len(list(Listing("folder", str(root), new.facts()))) == 49
    caches = tmp_path / "caches"
    source_changes.record("folder", str(images), caches)
    with np.load(caches / source_changes.FILE) as arrays:
        of_before = {name: arrays[name] for name in arrays.files if name != "suffixes"}
    assert source_changes.changes("folder", str(root), caches) == "1 added (train/cat/a.jfif)"
    np.savez(caches / source_changes.FILE, **of_before)
    assert source_changes.changes("folder", str(root), caches) is None
