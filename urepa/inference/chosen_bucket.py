"""Chooses the bucket of a request (`bucket=...`)."""

from __future__ import annotations

from collections.abc import Sequence

from urepa.core.errors import UserError


def choose_bucket(asked: str | None, names: Sequence[str], whose: str) -> str | None:
    """The requested one of a model's buckets (`urepa.core.track_protocols.Track.bucket_names`), or the first if none is
    requested; None if the model has none. Raises UserError for an unknown name."""
    if not names[0]:
        if asked is not None:
            raise UserError(f"bucket={asked} has no effect: the images of {whose} have one shape; drop it")
        return None
    if asked is None:
        return names[0]
    if asked not in names:
        raise UserError(f"bucket={asked}: {whose} has no such bucket; give one of {', '.join(names)}")
    return asked
