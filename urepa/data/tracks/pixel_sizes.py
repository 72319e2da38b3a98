"""The shapes of a small track and their checks, from its settings, without torch."""

from __future__ import annotations

from urepa.core.errors import UserError
from urepa.data.lists.bucket_shapes import Size


def check_pixels(source: str, image_size: int, unshuffle: int, flip: bool) -> None:
    """Raises UserError if the image size is not a multiple of `unshuffle`, or if digits would be mirrored."""
    if image_size % unshuffle:
        raise UserError(f"data.image_size={image_size} is not a multiple of data.unshuffle={unshuffle}")
    if flip and source == "digits":
        raise UserError("data.flip=true would mirror digits, which are then no digits any more; leave it out")


def check_channels(channels: int, found: int) -> None:
    """Raises UserError if the images have another number of channels."""
    if channels != found:
        raise UserError(f"data.channels={channels}, but the images have {found}")


def unshuffled_shape(channels: int, size: Size, unshuffle: int) -> tuple[int, int, int]:
    """Shape of x0, [C·f², H/f, W/f]."""
    return (channels * unshuffle**2, size[0] // unshuffle, size[1] // unshuffle)
