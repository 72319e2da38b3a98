"""A picture of tokens beside their images: each token's first three principal components as a colour.

Shapes: S samples, N tokens, D width, C channels, H and W rows and columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from urepa.core.png import labelled_grid, to_pixels
from urepa.data.alignment.references import Reference
from urepa.data.alignment.verdicts import Verdict, principal
from urepa.data.alignment.views import View, flat_features
from urepa.models.teachers.rectangle_sizes import Grid

SHOWN = 4  # samples
LONGER = 256  # pixels of a tile's longer side


def picture(tokens_SND: Tensor, grid: Grid, images_SCHW: Tensor, reference: Reference, verdict: Verdict) -> bytes:
    """A PNG with a column for each of some samples: the image, the tokens read as the declared grid, the reference at
    its places, and, where another view explains more, the tokens read as that view."""
    size = images_SCHW.shape[-2:]
    scale = LONGER / max(size)
    tile = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    colours_SN3 = _colours(tokens_SND)
    view, own = verdict.best, View("", grid)
    rows = [
        ("images" if images_SCHW.shape[1] == 3 else "latents", _images(images_SCHW, tile)),
        ("tokens as declared", _read_as(colours_SN3, own, tile)),
        (reference.name, _read_as(_colours(flat_features(reference.map((1.0, 1.0)), grid)), own, tile)),
    ]
    if view is not None and (view.grid, view.skipped) != (grid, 0):
        rows.append((f"as {view.name}", _read_as(colours_SN3, view, tile)))
    elif view is not None and view.crop != own.crop:
        shown = _colours(flat_features(reference.map(view.crop), grid))
        rows.append((f"{reference.name} of {view.name}", _read_as(shown, own, tile)))
    return labelled_grid(rows)


def _colours(values_SND: Tensor) -> Tensor:
    """The first three principal components, scaled to [0,1] by their 2nd and 98th percentiles."""
    shown = principal(values_SND.float(), 3).flip(-1)
    shown = F.pad(shown, (0, 3 - shown.shape[-1]))
    low, high = (torch.quantile(shown.flatten(0, 1)[:100_000], q, dim=0) for q in (0.02, 0.98))
    return ((shown - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def _read_as(colours_SN3: Tensor, view: View, tile: tuple[int, int]) -> list[Image.Image]:
    """The tokens as images of a view's grid; places without a token are black."""
    rows, columns = view.grid
    own = colours_SN3[:SHOWN, view.skipped : view.skipped + rows * columns]
    full = F.pad(own, (0, 0, 0, rows * columns - own.shape[1]))
    maps = full.mT.unflatten(2, view.grid)
    return [_image(F.interpolate(one[None], tile, mode="nearest")[0]) for one in maps]


def _images(values_SCHW: Tensor, tile: tuple[int, int]) -> list[Image.Image]:
    shown = values_SCHW[:SHOWN].float()
    if shown.shape[1] != 3:
        shown = _colours(shown.flatten(2).mT).mT.unflatten(2, shown.shape[-2:])
    resized = F.interpolate(shown, tile, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return [_image(one) for one in resized]


def _image(pixels_3HW: Tensor) -> Image.Image:
    return Image.fromarray(to_pixels(pixels_3HW))
