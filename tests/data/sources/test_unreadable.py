"""Images that cannot be read: all are listed at once, before the other images are processed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.data.lists.paths import is_finished
from urepa.data.sources.unreadable import report
from urepa.data.tracks.pixel_bucket_caches import PixelBucket


def damage(root: Path, *places: str) -> Path:
    for place in places:
        (root / place).write_bytes((root / place).read_bytes()[:60])
    return root


BAD = ("train/cat/05.png", "train/dog/11.png", "test/emu/02.png")


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    return damage(Path(shutil.copytree(images, tmp_path / "photos")), *BAD)


def test_all_are_listed_before_the_teacher_runs(
    damaged: Path, make_track: Any, teacher: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Asked(type(teacher)):  # type: ignore[misc]
        def tokens(self, images: Any) -> Any:
            raise AssertionError("images are still to be mended")

    track = make_track(images=str(damaged), test_images=12)  # all: which are drawn does not matter
    with pytest.raises(UserError, match=r"^3 of 48 images cannot be read \(first: .*\): repair or remove them, or"):
        track.open(Asked())
    assert not is_finished(track.folder / "latents")
    said = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(said) == sorted(BAD)
    listed = json.loads((track.folder / "unreadable.json").read_text())
    assert set(listed) == {"train_cat_05", "train_dog_11", "test_emu_02"}


@pytest.mark.slow
def test_images_left_out_do_not_affect_the_others(damaged: Path, make_track: Any, tmp_path: Path) -> None:
    """This does not depend on the order: the next image of the class replaces it, as in a folder without the damaged
    ones."""
    with pytest.raises(UserError, match=r"^2 of 39 .* data.max_skipped=0.052$"):
        make_track(images=str(damaged), limit=27).open(None)
    track = make_track(images=str(damaged), limit=27, max_skipped=0.052)
    ours = track.open(None)
    for place in BAD:
        (damaged / place).unlink()
    theirs = make_track(images=str(damaged), limit=27, root=str(tmp_path / "other")).open(None)
    assert ours.content() == theirs.content()
    assert {split: len(rows) for split, rows in ours.splits.items()} == {"train": 27, "val": 6, "test": 6}
    for cache in (ours, theirs):
        cache.close()


def test_a_file_without_read_permission_is_listed(images: Path, make_track: Any, tmp_path: Path) -> None:
    root = Path(shutil.copytree(images, tmp_path / "photos"))
    os.chmod(root / BAD[0], 0)
    if os.access(root / BAD[0], os.R_OK):
        os.remove(root / BAD[0])
        os.symlink("/proc/self/mem", root / BAD[0])  # root may read every file, but not this one
    with pytest.raises(UserError, match=r"1 of 42 images cannot be read \(first: train/cat/05.png: "):
        make_track(images=str(root)).open(None)


@pytest.mark.slow
def test_a_killed_build_is_completed_after_a_damaged_image_was_repaired(
    damaged: Path, images: Path, make_track: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An image that replaced a damaged one is no longer part of the track once the damaged one can be read."""
    track = make_track(images=str(damaged), limit=27, max_skipped=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(PixelBucket, "seal_latents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            track.open(None)
    (track.folder / "source_files.npz").unlink()  # as if only its permissions had been mended
    for place in BAD:
        shutil.copy(images / place, damaged / place)
    ours, theirs = track.open(None), make_track(limit=27, root=str(tmp_path / "other")).open(None)
    assert ours.content() == theirs.content()
    assert ours.latents.count() == 39
    for cache in (ours, theirs):
        cache.close()


@pytest.mark.parametrize(
    ("found", "of", "share", "allowed"),
    [
        (1, 1000, 0.0, False),
        (1, 1000, 0.0001, True),
        (2, 1000, 0.001, False),
        (2, 1000, 0.002, True),
        (12, 40, 0.3, True),
        (13, 40, 0.3, False),
        (40, 40, 1.0, True),
    ],
)
def test_the_share_that_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], found: int, of: int, share: float, allowed: bool
) -> None:
    """0 allows none; any other share always allows one image."""
    sentences = {f"i{n}": f"a/\x1b{n}.png: truncated" for n in range(found)}
    if allowed:
        report(sentences, of, share, tmp_path)
    else:
        with pytest.raises(UserError, match=r"\(first: a/\?0.png: truncated; all are listed in .*unreadable.json\)"):
            report(sentences, of, share, tmp_path)
    said = capsys.readouterr().out
    assert said.count("truncated") == min(found, 10)
    assert ("and 2 more" in said) == (found == 12)
    assert "\x1b" not in said
    assert json.loads((tmp_path / "unreadable.json").read_text()) == sentences
    report({}, of, share, tmp_path)
    assert not (tmp_path / "unreadable.json").exists()


def test_the_share_that_the_message_proposes_suffices(tmp_path: Path) -> None:
    for found, of in ((1, 3), (7, 1000), (57, 1000), (1, 1_281_167), (3, 3)):
        sentences = {f"i{n}": "a.png: truncated" for n in range(found)}
        with pytest.raises(UserError) as refused:
            report(sentences, of, 0.0, tmp_path)
        offered = float(str(refused.value).rpartition("data.max_skipped=")[2])
        report(sentences, of, offered, tmp_path)
        assert found <= offered * of < found + of / 500
