"""Which shape the images of a request have: that of a bucket (`bucket=...`), or rows and columns in pixels
(`size=...`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.track_protocols import Track
from urepa.inference.chosen_bucket import choose_bucket
from urepa.training.checks.sizes import as_shape, check_latents

LARGEST = 16384  # pixels of a side
HALVINGS = 8  # so often at most a backbone is taken to halve x0


def choose_shape(asked: dict[str, Any], config: dict[str, Any], names: Sequence[str], whose: str) -> dict[str, Any]:
    """The request with its bucket (None where the model has none, or a size is asked for), its size in pixels (None
    where that is what the model has without it) and the shape of x0 of that size.

    Args:
        names: of the model's buckets; one empty name where it has none.

    UserError for a bucket that the model has not, and for a size that the backbone or the autoencoder cannot have.
    """
    size, bucket = asked["size"], asked["bucket"]
    if size is not None and bucket is not None:
        raise UserError(f"bucket={bucket} and size={size} are two shapes; give one of them")
    if size and size in names:
        size, bucket = None, size
    if size is None:
        return asked | {"bucket": choose_bucket(bucket, names, whose), "size": None, "x0_shape": None}
    track: Track = declaration_of(config["data"])
    shape = _x0_shape(size, track, declaration_of(config["backbone"]), whose)
    if not names[0] and shape == as_shape(track.latent_shapes[0]):
        return asked | {"size": None, "x0_shape": None}
    return asked | {"size": size, "x0_shape": list(shape)}


def _x0_shape(size: str, track: Any, backbone: Any, whose: str) -> tuple[int, int, int]:
    """[C,H,W] of images of a size."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    sides = [int(side) for side in found.groups()] if found else []
    if not sides or not all(0 < side <= LARGEST for side in sides):
        raise UserError(f"size={size}: give rows and columns in pixels, as size=512x768")
    channels, rows, _ = own = as_shape(track.latent_shapes[0])  # of the first bucket, which need not be a square
    first = track.bucket_names[0]
    height = int(first.partition("x")[0]) if first else getattr(track, "image_size", None)
    if height is None or height % rows:
        raise UserError(f"size={size}: the images of {whose} have the one shape of its data; drop it")
    factor = height // rows  # of the autoencoder, or of folding pixels into channels

    shape = (channels, sides[0] // factor, sides[1] // factor)
    if any(side % factor for side in sides) or not _is_taken(backbone, shape):
        # odd numbers of a multiple halve as often as it alone
        halved = (2**k for k in range(HALVINGS) if _is_taken(backbone, (channels, 3 * 2**k, 5 * 2**k)))
        multiple = next(halved, None)
        advice = "drop it" if multiple is None else f"give multiples of {factor * multiple} pixels"
        raise UserError(f"size={size} does not fit {whose}: {advice}")
    try:
        check_latents(backbone, [own, shape] if shape != own else [own])
    except UserError:
        raise UserError(
            f"size={size}: the backbone of {whose} takes the one shape that it was trained on; drop it"
        ) from None
    return shape


def _is_taken(backbone: Any, shape: tuple[int, int, int]) -> bool:
    """Does it take x0 of this shape, by itself?"""
    try:
        backbone.check(shape)
    except UserError:
        return False
    return True
