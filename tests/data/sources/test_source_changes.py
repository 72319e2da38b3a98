"""Whether images are those from which caches were made, tested with real files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from urepa.core.errors import UserError
from urepa.data.sources import source_changes


@pytest.fixture
def source(tmp_path: Path, images: Path) -> Path:
    """A copy of the images, and its record in tmp_path/caches."""
    root = tmp_path / "mine"
    shutil.copytree(images, root)
    assert not source_changes.record("folder", str(root), tmp_path / "caches")
    return root


def picture(file: Path, value: int) -> None:
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file)


def rewrite(root: Path) -> None:
    """Replaces an image by another one of the same size in bytes."""
    file = root / "train" / "cat" / "00.png"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def replace_and_keep_the_time(root: Path) -> None:
    file = root / "train" / "cat" / "00.png"
    time = file.stat().st_mtime_ns
    picture(file, 7)
    os.utime(file, ns=(time, time))


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rewritten": (rewrite, r"^1 rewritten \(train/cat/00.png\)$"),
    "another size": (replace_and_keep_the_time, r"^1 rewritten \(train/cat/00.png\)$"),
    "added": (lambda root: picture(root / "train" / "cat" / "new.png", 1), r"^1 added \(train/cat/new.png\)$"),
    "gone": (lambda root: (root / "test" / "emu" / "03.png").unlink(), r"^1 gone \(test/emu/03.png\)$"),
    "renamed": (
        lambda root: (root / "train" / "cat" / "00.png").rename(root / "train" / "cat" / "zz.png"),
        r"^1 added \(train/cat/zz.png\), 1 gone \(train/cat/00.png\)$",
    ),
    "another class": (
        lambda root: [
            ((root / split / "fox").mkdir(), picture(root / split / "fox" / "a.png", 1)) for split in ("train", "test")
        ],
        r"^2 added \(test/fox/a.png, train/fox/a.png\)$",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_said(tmp_path: Path, source: Path, name: str) -> None:
    change, words = CHANGES[name]
    change(source)
    found = source_changes.changes("folder", str(source), tmp_path / "caches")
    assert found is not None
    assert re.search(words, found), found


def test_unchanged_images_are_recognised(tmp_path: Path, source: Path) -> None:
    """Unchanged, touched, with another file that is not an image, copied with other times, and removed."""
    caches = tmp_path / "caches"
    assert source_changes.changes("folder", str(source), caches) is None
    (source / "train" / "cat" / "notes.txt").write_text("a folder's time changes")
    os.utime(source / "train" / "cat" / "00.png")
    assert source_changes.changes("folder", str(source), caches) is None
    copy = tmp_path / "elsewhere"
    shutil.copytree(source, copy, copy_function=shutil.copy)  # without the files' times
    assert source_changes.changes("folder", str(copy), caches) is None
    shutil.rmtree(source)
    assert source_changes.changes("folder", str(source), caches) is None


def test_with_many_files_folders_show_additions_and_removals(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_changes, "LOOKED_AT", 10)
    root, caches = tmp_path / "many", tmp_path / "caches"
    shutil.copytree(images, root)
    source_changes.record("folder", str(root), caches)
    rewrite(root)
    assert source_changes.changes("folder", str(root), caches) is None, "as the page says"
    (root / "train" / "cat" / "00.png").rename(root / "train" / "cat" / "zz.png")
    assert source_changes.changes("folder", str(root), caches) == "other files: 48 then, 48 now"


def test_other_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caches, root = tmp_path / "caches", tmp_path / "cifar"
    root.mkdir()
    (root / "train.bin").write_bytes(b"one")
    source_changes.record("cifar_binary", str(root), caches)
    assert source_changes.changes("cifar_binary", str(root), caches) is None
    (root / "train.bin").write_bytes(b"two")
    assert source_changes.changes("cifar_binary", str(root), caches) == "1 rewritten (train.bin)"
    assert source_changes.changes("digits", "scikit-learn", caches) is None
    assert source_changes.changes("cifar_binary", str(root), tmp_path / "old") is None
    assert "an earlier version made these caches" in capsys.readouterr().out


def test_a_folder_that_is_no_source_any_more_has_changed(tmp_path: Path, source: Path) -> None:
    """This is not a damaged record, and no reason to refuse a run that continues: its caches decide."""
    shutil.rmtree(source / "test" / "emu")
    found = source_changes.changes("folder", str(source), tmp_path / "caches")
    assert found is not None
    assert "does not have the class folders" in found
    for place in source.iterdir():
        shutil.rmtree(place)
    assert "has neither CLASS/* nor train/CLASS/*" in str(
        source_changes.changes("folder", str(source), tmp_path / "caches")
    )


def test_a_damaged_record_is_reported_in_one_sentence(tmp_path: Path, source: Path) -> None:
    (tmp_path / "caches" / source_changes.FILE).write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="cannot be read"):
        source_changes.changes("folder", str(source), tmp_path / "caches")


# --- a track's caches ---------------------------------------------------------------------------------------


def test_a_build_of_changed_images_is_refused(tmp_path: Path, source: Path, make_track: Callable[..., Any]) -> None:
    track = make_track(images=str(source))
    track.open(None).close()
    assert track.has_caches(None)
    rewrite(source)
    with pytest.raises(UserError, match=r"not what the caches in .* were made from \(1 rewritten"):
        track.build(None)
    with pytest.raises(UserError, match="put it back, or give another data.root"):
        source_changes.refuse_changes(track)


@pytest.mark.slow
def test_records_of_a_killed_build_from_other_images_are_removed(
    tmp_path: Path, source: Path, make_track: Callable[..., Any]
) -> None:
    track = make_track(images=str(source))
    track.open(None).close()
    (track.folder / "latents" / "manifest.json").unlink()  # as a build that was killed before its end
    picture(source / "train" / "cat" / "00.png", 7)
    track.open(None).close()
    other = make_track(images=str(source), root=str(tmp_path / "other"))
    both = [t.open(None) for t in (track, other)]
    ids = [s.sample_id for s in both[0].splits["train"]]
    one, two = (cache.latents.read(ids) for cache in both)
    assert np.array_equal(one, two)
