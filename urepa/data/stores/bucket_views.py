"""A track whose images may have several shapes, bucket by bucket: for what is counted before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from urepa.models.teachers.several_teachers import by_name


def bucket_views(track: Any) -> dict[str, Any]:
    """The track as if each of its buckets were all of it, by the bucket's name: those with images as far as that is
    known, else those that there may be. One without a name is the track itself."""
    if not hasattr(track, "of_bucket"):
        return {"": track}
    return {bucket.name: track.of_bucket(bucket.name) for bucket in track.buckets}


def bucket_samples(track: Any) -> Mapping[str, Mapping[str, int]] | None:
    """How many samples of each split each of `bucket_views` has; None where no list says it."""
    known: Mapping[str, Mapping[str, int]] | None = track.bucket_samples() if hasattr(track, "of_bucket") else None
    views = bucket_views(track)
    return dict.fromkeys(views, track.expected_samples()) if known is None and len(views) == 1 else known


def teachers_of(view: Any, teacher: Any | None) -> Mapping[str, Any]:
    """The built teachers by name, each with its grid for the images of one of `bucket_views`."""
    return view.teachers(teacher) if hasattr(view, "of_bucket") else by_name(teacher)
