"""The shapes that a track's images are cut to, computed from its settings without torch or images.

A bucket is the images of one shape; sizes are rows and columns in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from urepa.core.errors import UserError

MOST_BUCKETS = 16
AUTO = "auto"
BUCKETS = "buckets.json"  # the number of samples per split of each bucket, for tracks with several
Size = tuple[int, int]


def check_bucket_list(buckets: Any, image_size: int, step: int, step_name: str) -> None:
    """Raises UserError if `data.buckets` is neither "auto" nor a list of distinct sizes that are multiples of `step`.

    Args:
        step: pixels that one row or column of x0 stands for.
        step_name: the name of that setting, for messages.
    """
    if buckets == AUTO:
        if image_size % (4 * step):
            raise UserError(
                f"data.buckets=auto uses quarters of data.image_size={image_size}, which must be a multiple of "
                f"{4 * step} (4 times {step_name})"
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
        if height % step or width % step:
            raise UserError(f"data.buckets: [{height},{width}] is not a multiple of {step_name}={step}")


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(type(side) is int and side > 0 for side in value)
    )


def bucket_sizes(buckets: Any, image_size: int) -> dict[str, Size]:
    """The sizes of the buckets by their names, "48x80"; without buckets one square with an empty name. "auto":
    the square of `image_size` and its 3/4 by 5/4 in landscape and portrait, which have nearly as many pixels."""
    if buckets is None:
        return {"": (image_size, image_size)}
    if buckets == AUTO:
        short, long = 3 * image_size // 4, 5 * image_size // 4
        buckets = [(image_size, image_size), (short, long), (long, short)]
    return {f"{height}x{width}": (height, width) for height, width in buckets}


def nearest(size: Size, buckets: Sequence[Size]) -> int:
    """The index of the bucket whose aspect ratio is nearest to the image's, by the quotient of the two; the first of
    equally near ones."""
    aspect = math.log(size[1] / size[0])
    return min(range(len(buckets)), key=lambda i: abs(math.log(buckets[i][1] / buckets[i][0]) - aspect))


def nearest_buckets(
    sizes: Mapping[str, Size], train: Iterable[str], buckets: Mapping[str, Size], asked: Any
) -> dict[str, str]:
    """The bucket with the nearest aspect ratio for each sample id. Raises UserError if a bucket that was given by size
    has no training image; a bucket of "auto" is then dropped, and its images go to the next nearest.

    Args:
        sizes: rows and columns of the samples' images.
        train: the ids of the training samples.
        buckets: the buckets' sizes by name.
        asked: `data.buckets`.
    """
    train = list(train)
    while True:
        names, shapes = list(buckets), list(buckets.values())
        of_sample = {sample_id: names[nearest(size, shapes)] for sample_id, size in sizes.items()}
        used = {of_sample[sample_id] for sample_id in train}
        if len(used) == len(buckets):
            return of_sample
        rest = {name: size for name, size in buckets.items() if name in used}
        if asked != AUTO:
            empty = " or ".join(name for name in buckets if name not in rest)
            kept = json.dumps([list(size) for size in rest.values()], separators=(",", ":"))
            raise UserError(
                f"no training image is nearest in aspect to {empty} of data.buckets; give data.buckets='{kept}'"
            )
        buckets = rest


def cut_to_aspect(size: Size, bucket: Size) -> Size:
    """Rows and columns of the largest rectangle with a bucket's aspect ratio in an image, to the nearest pixel."""
    height, width = size
    if width * bucket[0] > height * bucket[1]:  # the image is the wider one
        return height, max(1, round(height * bucket[1] / bucket[0]))
    return max(1, round(width * bucket[0] / bucket[1])), width
