"""Which bucket `bucket=...` of a request names."""

from __future__ import annotations

from collections.abc import Sequence

from urepa.core.errors import UserError


def choose_bucket(asked: str | None, names: Sequence[str], whose: str) -> str | None:
    """The bucket that is asked for, of those of a model (`urepa.core.track_protocols.Track.bucket_names`), the first
    one where none is; None where the model has none. UserError for another name."""
    if not names[0]:
        if asked is not None:
            raise UserError(f"bucket={asked} has no effect: the images of {whose} have one shape; drop it")
        return None
    if asked is None:
        return names[0]
    if asked not in names:
        raise UserError(f"bucket={asked}: {whose} has no such bucket; give one of {', '.join(names)}")
    return asked
