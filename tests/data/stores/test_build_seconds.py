"""The recorded seconds of making a teacher's tokens, with a clock that advances by 1,000 seconds per batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.data.stores.build_seconds import FILE, BuildTime, teacher_cache_seconds
from urepa.data.tracks import pixel_bucket_caches
from urepa.data.tracks.pixel_caches import PixelTrackCaches

Track = Callable[..., PixelTrackCaches]
BATCH_TAKES = 1000.0


@pytest.fixture
def timed(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A teacher whose batches take 1,000 seconds; after `after` of them its process is interrupted."""
    real, batches = time.monotonic, [0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + BATCH_TAKES * batches[0])
    monkeypatch.setattr(pixel_bucket_caches, "CHUNK", 8)

    class Timed(type(teacher)):  # type: ignore[misc]
        after: int | None = None

        def tokens(self, images: Any) -> Any:
            if batches[0] == self.after:
                raise KeyboardInterrupt
            batches[0] += 1
            return super().tokens(images)

    return Timed()


def seconds(track: PixelTrackCaches, teacher: Any) -> float | None:
    cache = track.open(teacher)
    cache.close()
    return teacher_cache_seconds(cache)


@pytest.mark.slow
def test_builds_that_were_interrupted_count(make_track: Track, timed: Any) -> None:
    """42 records and 30 mirrored ones in batches of eight."""
    track = make_track(flip=True)
    timed.after = 3
    with pytest.raises(KeyboardInterrupt):
        track.open(timed)
    timed.after = None
    batches = 6 + 4  # the mirrored ones are those of the training images alone
    found = seconds(track, timed)
    assert found is not None
    assert found == pytest.approx(batches * BATCH_TAKES, abs=BATCH_TAKES / 2)
    assert seconds(track, timed) == found, "a store that is there takes nothing"


@pytest.mark.slow
def test_the_seconds_are_no_part_of_a_stores_identity(make_track: Track, timed: Any) -> None:
    track = make_track()
    cache = track.open(timed)
    cache.close()
    before = json.dumps(cache.fingerprint())
    (folder,) = track.tokens_folders(timed).values()
    (folder / FILE).unlink()
    again = track.open(timed)
    again.close()
    assert json.dumps(again.fingerprint()) == before
    assert teacher_cache_seconds(again) is None, "not known, as of a store that an earlier version made"


def test_the_seconds_of_a_build_begun_by_an_earlier_version_are_unknown(make_track: Track, timed: Any) -> None:
    track = make_track()
    timed.after = 3
    with pytest.raises(KeyboardInterrupt):
        track.open(timed)
    (folder,) = track.tokens_folders(timed).values()
    (folder / FILE).unlink()
    timed.after = None
    assert seconds(track, timed) is None


def test_without_tokens_nothing_was_spent(make_track: Track) -> None:
    assert seconds(make_track(), None) == 0.0


def test_the_recorded_seconds_are_those_of_all_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(2):
        spent = BuildTime(tmp_path)
        now[0] += 5.0
        spent.note()
        now[0] += 2.0
        spent.note()  # too soon
        assert json.loads((tmp_path / FILE).read_text())["seconds"] % 7 == 5.0
        spent.note(last=True)
    assert json.loads((tmp_path / FILE).read_text()) == {"seconds": 14.0}
