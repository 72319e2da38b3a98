"""PNG files of images: single images, grids, and grids with labels.

Shapes: B images, H/W pixels; colours in [0,1] as tensors, uint8 as arrays.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from urepa.core.escaping import printable

SMALLEST, LARGEST = 64, 256  # sides of a tile in a labelled grid
GAP = 2
LONGEST_LABEL = 60  # in characters


def to_png(pixels_HW3: np.ndarray) -> bytes:
    """uint8 pixels as a PNG."""
    png = io.BytesIO()
    Image.fromarray(pixels_HW3).save(png, format="PNG")
    return png.getvalue()


def to_pixels(image_3HW: Tensor) -> np.ndarray:
    """An image in [0,1] as uint8 [H,W,3], rounded as diffusers does."""
    return (image_3HW.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)


def grid_png(images_B3HW: Tensor, columns: int) -> bytes:
    """Images [B,3,H,W] in [0,1] as one PNG with `columns` per row; each pixel is enlarged to 2x2, with gaps of 4."""
    pad = torch.nn.functional.pad(images_B3HW, (1, 1, 1, 1), value=1.0)
    rows = [torch.cat(list(chunk), dim=2) for chunk in pad.split(columns)]
    return to_png(to_pixels(torch.cat(rows, dim=1)).repeat(2, 0).repeat(2, 1))


def tile(image: Image.Image) -> Image.Image:
    """The image at a suitable size for a grid: small images are enlarged by whole factors, large ones reduced."""
    side = max(image.size)
    if side > LARGEST:
        reduced = (max(1, round(length * LARGEST / side)) for length in image.size)
        return image.resize(tuple(reduced), Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    times = -(-SMALLEST // side) if side < SMALLEST else 1
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _shorten_label(label: str) -> str:
    label = printable(label)
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 3]}..."


def labelled_grid(rows: list[tuple[str, list[Image.Image]]]) -> bytes:
    """A PNG of rows of images of one size, each row with its label on the left. Labels are shortened to one line."""
    rows = [(_shorten_label(label), images) for label, images in rows]
    tiled = [(label, [tile(image) for image in images]) for label, images in rows]
    width, height = tiled[0][1][0].size
    font = ImageFont.load_default(14)
    margin = GAP + int(max(font.getlength(label) for label, _ in rows)) + 3 * GAP
    columns = max(len(images) for _, images in rows)
    size = (margin + columns * (width + GAP), GAP + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, images) in enumerate(tiled):
        top = GAP + i * (height + GAP)
        draw.text((GAP, top + height // 2), label, fill="black", font=font, anchor="lm")
        for j, image in enumerate(images):
            sheet.paste(image, (margin + j * (width + GAP), top))
    return to_png(np.asarray(sheet))
