"""Chooses the shape of a request's images: that of a bucket (`bucket=...`), or rows and columns in pixels
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
HALVINGS = 8  # the most times that a backbone is assumed to halve x0


def choose_shape(asked: dict[str, Any], config: dict[str, Any], names: Sequence[str], whose: str) -> dict[str, Any]:
    """The request with the chosen `bucket` (None if the model has none, or a size is requested), `size` in pixels (None
    if it is the model's default) and `x0_shape`, the shape of x0 at that size (None if `size` is None).

    Args:
        names: the names of the model's buckets; one empty name if it has none.

    Raises UserError for an unknown bucket, and for a size that the backbone or the autoencoder does not support.
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
    """The shape [C,H,W] of x0 for images of a size."""
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
    if any(side % factor for side in sides) or not _is_supported(backbone, shape):
        # 3 and 5 times 2**k can be halved as often as 2**k
        halved = (2**k for k in range(HALVINGS) if _is_supported(backbone, (channels, 3 * 2**k, 5 * 2**k)))
        multiple = next(halved, None)
        advice = "drop it" if multiple is None else f"give multiples of {factor * multiple} pixels"
        raise UserError(f"size={size} does not fit {whose}: {advice}")
    try:
        check_latents(backbone, [own, shape] if shape != own else [own])
    except UserError:
        raise UserError(
            f"size={size}: the backbone of {whose} supports only the shape that it was trained on; drop it"
        ) from None
    return shape


def _is_supported(backbone: Any, shape: tuple[int, int, int]) -> bool:
    """Whether the backbone supports x0 of this shape, apart from other shapes."""
    try:
        backbone.check(shape)
    except UserError:
        return False
    return True
