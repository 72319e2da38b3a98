"""Pictures contain the images' own pixels, at the right place and size."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from urepa.core.png import GAP, LONGEST_LABEL, grid_png, labelled_grid, tile, to_pixels, to_png

RNG = np.random.default_rng(0)


def image(side: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8))


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_pixels_are_rounded_as_diffusers_does() -> None:
    from diffusers.image_processor import VaeImageProcessor

    rgb_3HW = torch.rand(3, 5, 7)
    theirs = VaeImageProcessor.numpy_to_pil(rgb_3HW.permute(1, 2, 0).numpy())[0]
    assert np.array_equal(to_pixels(rgb_3HW), np.asarray(theirs))
    assert np.array_equal(opened(to_png(to_pixels(rgb_3HW))), np.asarray(theirs))


def test_small_images_are_enlarged_by_whole_pixels_and_large_ones_reduced() -> None:
    small = image(30)
    assert np.array_equal(np.asarray(tile(small)), np.asarray(small).repeat(3, 0).repeat(3, 1))
    assert np.array_equal(np.asarray(tile(image_64 := image(64))), np.asarray(image_64))
    assert tile(Image.new("RGB", (512, 256))).size == (256, 128)


def test_a_label_is_one_short_line() -> None:
    """Folders may have any names: a line break would reach into other rows, and a long name would fill the sheet."""
    one = image(64)
    assert labelled_grid([("two\nlines\x1b", [one])]) == labelled_grid([("two?lines?", [one])])
    sheet = opened(labelled_grid([(name, [one]) for name in ("long " * 1000, "")]))
    assert sheet.shape[0] == GAP + 2 * (64 + GAP)
    assert sheet.shape[1] < 64 + 10 * LONGEST_LABEL


def test_a_grid_has_a_labelled_row_of_tiles_each() -> None:
    rows = [("0 tench", [image(64) for _ in range(3)]), ("999 <b>", [image(64) for _ in range(2)])]
    sheet = opened(labelled_grid(rows))
    height, width, _ = sheet.shape
    margin = width - 3 * (64 + GAP)
    assert height == GAP + 2 * (64 + GAP)
    for i, (_, images) in enumerate(rows):
        top = GAP + i * (64 + GAP)
        for j, one in enumerate(images):
            left = margin + j * (64 + GAP)
            assert np.array_equal(sheet[top : top + 64, left : left + 64], np.asarray(one))
    labels = [sheet[GAP + i * (64 + GAP) :][:64, :margin] for i in range(2)]
    assert all(label.min() < 100 for label in labels), "black on white"
    assert not np.array_equal(*labels)
    assert (sheet[GAP + 64 + GAP :, margin + 2 * (64 + GAP) :] == 255).all(), "nothing where there is no image"


def test_a_plain_grid_is_pixel_for_pixel() -> None:
    images = torch.rand(4, 3, 4, 4)
    sheet = opened(grid_png(images, columns=2))
    assert sheet.shape == (24, 24, 3)
    assert np.array_equal(sheet[14:22, 2:10], to_pixels(images[2]).repeat(2, 0).repeat(2, 1))
