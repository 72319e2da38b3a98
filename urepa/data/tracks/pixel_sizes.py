"""Shapes of a small track from its settings, without torch: what its constructor refuses, said before it loads.

A bucket is the images of one shape; sizes are rows and columns in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from urepa.core.errors import UserError

MOST_BUCKETS = 16
AUTO = "auto"
BUCKETS = "buckets.json"  # how many samples of each split each bucket has; where there are several
Size = tuple[int, int]


def check_pixels(source: str, image_size: int, unshuffle: int, flip: bool) -> None:
    """UserError where the size in pixels does not divide, or mirror images would be of nothing."""
    if image_size % unshuffle:
        raise UserError(f"data.image_size={image_size} is not a multiple of data.unshuffle={unshuffle}")
    if flip and source == "digits":
        raise UserError("data.flip=true would mirror digits, and then they are none; leave it out")


def check_channels(channels: int, found: int) -> None:
    """UserError where the images have another number of channels."""
    if channels != found:
        raise UserError(f"data.channels={channels}, but the images have {found}")


def unshuffled_shape(channels: int, size: Size, unshuffle: int) -> tuple[int, int, int]:
    """Shape of x0, [C·f², H/f, W/f]."""
    return (channels * unshuffle**2, size[0] // unshuffle, size[1] // unshuffle)


def check_bucket_list(buckets: Any, image_size: int, unshuffle: int) -> None:
    """UserError where `data.buckets` is neither "auto" nor a list of different sizes that divide."""
    if buckets == AUTO:
        if image_size % (4 * unshuffle):
            raise UserError(
                f"data.buckets=auto cuts at quarters of data.image_size={image_size}, which must be a multiple of "
                f"{4 * unshuffle} (4 times data.unshuffle)"
            )
        return
    sizes = buckets if isinstance(buckets, Sequence) and not isinstance(buckets, str) else []
    if not 1 <= len(sizes) <= MOST_BUCKETS or not all(map(_is_size, sizes)):
        raise UserError(
            f"data.buckets={buckets}: give auto, or 1 to {MOST_BUCKETS} pairs of rows and columns in pixels, as "
            "data.buckets='[[64,64],[48,80]]'"
        )
    if len({tuple(size) for size in sizes}) < len(sizes):
        raise UserError(f"data.buckets={buckets} names a bucket twice; drop one")
    for height, width in sizes:
        if height % unshuffle or width % unshuffle:
            raise UserError(f"data.buckets: [{height},{width}] is not a multiple of data.unshuffle={unshuffle}")


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(type(side) is int and side > 0 for side in value)
    )


def bucket_sizes(buckets: Any, image_size: int) -> dict[str, Size]:
    """The sizes of the buckets by their names, "48x80"; of a track without buckets one square, whose name is empty.
    "auto": the square of `image_size`, and 3/4 by 5/4 of it lying and standing, which have nearly as many pixels."""
    if buckets is None:
        return {"": (image_size, image_size)}
    if buckets == AUTO:
        short, long = 3 * image_size // 4, 5 * image_size // 4
        buckets = [(image_size, image_size), (short, long), (long, short)]
    return {f"{height}x{width}": (height, width) for height, width in buckets}


def nearest(size: Size, buckets: Sequence[Size]) -> int:
    """Which of `buckets` has the aspect nearest to that of an image, by the ratio of the aspects; of two that are as
    near the first."""
    aspect = math.log(size[1] / size[0])
    return min(range(len(buckets)), key=lambda i: abs(math.log(buckets[i][1] / buckets[i][0]) - aspect))


def cut_to_aspect(size: Size, bucket: Size) -> Size:
    """Rows and columns of the largest rectangle of a bucket's aspect in an image, to the nearest pixel."""
    height, width = size
    if width * bucket[0] > height * bucket[1]:  # the image is the wider one
        return height, max(1, round(height * bucket[1] / bucket[0]))
    return max(1, round(width * bucket[0] / bucket[1])), width
