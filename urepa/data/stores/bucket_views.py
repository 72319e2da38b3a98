"""A track's buckets, each viewed as a track of its own, for costs that are counted before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from urepa.models.teachers.several_teachers import by_name


def bucket_views(track: Any) -> dict[str, Any]:
    """One view of the track per bucket, by the bucket's name; each view has the interface of a track. These are the
    buckets with images or, before that is known, all that are possible. The empty name stands for the track itself."""
    if not hasattr(track, "of_bucket"):
        return {"": track}
    return {bucket.name: track.of_bucket(bucket.name) for bucket in track.buckets}


def bucket_samples(track: Any) -> Mapping[str, Mapping[str, int]] | None:
    """The number of samples per split of each of `bucket_views`; None while there are no lists."""
    known: Mapping[str, Mapping[str, int]] | None = track.bucket_samples() if hasattr(track, "of_bucket") else None
    views = bucket_views(track)
    return dict.fromkeys(views, track.expected_samples()) if known is None and len(views) == 1 else known


def teachers_of(view: Any, teacher: Any | None) -> Mapping[str, Any]:
    """The built teachers by name, each with its grid for the images of one of `bucket_views`."""
    return view.teachers(teacher) if hasattr(view, "of_bucket") else by_name(teacher)
