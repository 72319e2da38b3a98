"""Decodes photographs to RGB (orientation tags, CMYK, palettes, alpha, grey, 16 bits) and cuts them to one shape."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL.Image import DecompressionBombError, DecompressionBombWarning

from urepa.data.lists.bucket_shapes import Size, cut_to_aspect

# Nearly all cameras have fewer; such an image takes 0.36 GB when decoded. Pillow by itself warns above 89 million and
# raises above 179.
MOST_PIXELS = 120_000_000
TOO_MANY = f"more than the limit of {MOST_PIXELS // 10**6} megapixels; reduce it"
ORIENTATION, QUARTER_TURNED = 0x0112, 5  # EXIF's tag, and its first value that swaps rows and columns
UNREADABLE = (OSError, ValueError, SyntaxError, DecompressionBombError)  # what PIL raises for damaged files


@contextmanager
def large_images_as_value_errors() -> Iterator[None]:
    """Within this context an image that Pillow refuses for its size raises the same ValueError as in `to_rgb`."""
    _ignore_pillow_warning()
    try:
        yield
    except DecompressionBombError:  # above 2 · PIL.Image.MAX_IMAGE_PIXELS, which is more than MOST_PIXELS
        raise ValueError(f"it has {TOO_MANY}") from None


@cache
def _ignore_pillow_warning() -> None:
    """Ignores Pillow's warning about large images, as MOST_PIXELS is the limit here. Called once per process: a change
    of the warning filters makes Python repeat earlier warnings."""
    warnings.filterwarnings("ignore", category=DecompressionBombWarning)


def read(file: str | Path | BinaryIO) -> np.ndarray:
    """An image file, decoded by `to_rgb`."""
    from PIL import Image

    with large_images_as_value_errors(), Image.open(file) as image:
        return to_rgb(image)


def dimensions(file: str | Path | BinaryIO) -> tuple[int, int]:
    """Rows and columns of an image file as `read` returns it, rotated by its EXIF orientation, without decoding
    pixels."""
    from PIL import Image

    with large_images_as_value_errors(), Image.open(file) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= QUARTER_TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Any) -> np.ndarray:
    """A PIL image as uint8 [H,W,3]: rotated by its EXIF orientation, transparency over white, 16 bits scaled to 8.
    Raises OSError for a truncated image, and ValueError for more than `MOST_PIXELS` pixels or for values of 32 bits,
    whose white is not defined."""
    from PIL import Image, ImageOps

    if image.width * image.height > MOST_PIXELS:  # checked before decoding
        raise ValueError(f"its {image.width} x {image.height} pixels are {TOO_MANY}")
    image.load()
    deep = image.mode == "I" and (
        image.format == "TIFF" or not 0 <= image.getextrema()[0] <= image.getextrema()[1] < 2**16
    )
    if deep or image.mode == "F":  # in mode I a TIFF has 32 bits, other formats 16
        raise ValueError(
            f"its values are of {'32-bit floats' if image.mode == 'F' else '32 bits'}, not of 8 or 16 bits"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(image).astype(np.float32) / 257
        return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, opaque)
    return np.asarray(image.convert("RGB"))


def square(pixels: np.ndarray, size: int) -> Any:
    """The image with its shorter side resized to `size` (bicubic), cropped to the centre: a PIL image."""
    from PIL import Image

    image = Image.fromarray(pixels)
    width, height = image.size
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def rectangle(pixels: np.ndarray, size: Size) -> Any:
    """The largest central rectangle with the aspect ratio of `size` (rows, columns), resized to `size` (bicubic): a PIL
    image."""
    from PIL import Image

    high, wide = cut_to_aspect((pixels.shape[0], pixels.shape[1]), size)
    top, left = (pixels.shape[0] - high) // 2, (pixels.shape[1] - wide) // 2
    cut = Image.fromarray(pixels[top : top + high, left : left + wide])
    return cut.resize((size[1], size[0]), Image.Resampling.BICUBIC)
