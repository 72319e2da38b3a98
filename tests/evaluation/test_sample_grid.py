"""The grid of samples: one row per class, with names if the track has them."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from urepa.core.png import GAP, grid_png
from urepa.evaluation.measures.sample_grid_math import rows_png


def test_rows_have_the_names_of_their_classes() -> None:
    images_B3HW = (torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    sheet = np.asarray(Image.open(io.BytesIO(rows_png(images_B3HW, ["bag", "cat"], 2))))
    tiles = (images_B3HW.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    margin = sheet.shape[1] - 2 * (64 + GAP)
    assert sheet.shape[0] == GAP + 2 * (64 + GAP)
    for i, tile in enumerate(tiles):
        top, left = GAP + i // 2 * (64 + GAP), margin + i % 2 * (64 + GAP)
        assert np.array_equal(sheet[top : top + 64, left : left + 64], tile)
    names = [sheet[GAP + row * (64 + GAP) :][:64, :margin] for row in range(2)]
    assert all((name < 128).any() for name in names)
    assert not np.array_equal(*names)
    assert rows_png(images_B3HW, (), 2) == grid_png(images_B3HW, 2), "as without names"
