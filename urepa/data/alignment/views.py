"""The places of an image that a list of N tokens may show: as declared, or by a mistake that other caches had.

Shapes: N tokens, h and w rows and columns of a grid, S samples, F features, a and b rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from urepa.data.lists.bucket_shapes import Size
from urepa.models.teachers.rectangle_sizes import Grid

PATCHES = (8, 14, 16, 32)  # sides of patches in pixels, of which another one may have been used
MOST_EXTRA = 5  # a class token and four registers, or fewer
SQUARE_CUT = 224 / 256  # the share of the shorter side that a crop of 224 px after resizing to 256 px keeps
CENTRAL = (SQUARE_CUT, 3 / 4, 1 / 2)
Crop = tuple[float, float]  # the shares of rows and columns around the centre
WHOLE: Crop = (1.0, 1.0)
Move = Callable[[Tensor, Grid], Tensor]  # maps [S,F,a,b] with the grid of the tokens to maps of that shape


def stay(map_SFab: Tensor, grid: Grid) -> Tensor:
    """The map itself."""
    return map_SFab


@dataclass(frozen=True)
class View:
    """What the tokens may show: the patches of a grid over the image's crop, row by row, after `skipped` other tokens
    at the beginning of the list; `move` changes the image before."""

    name: str
    grid: Grid
    skipped: int = 0
    crop: Crop = WHOLE
    move: Move = stay

    def count(self, tokens: int) -> int:
        """How many of the list's tokens are patches of this grid."""
        return min(tokens - self.skipped, self.grid[0] * self.grid[1])


AS_DECLARED = "as declared"
OTHER_SAMPLE = "another sample"


def possible_views(tokens: int, grid: Grid, size: Size) -> list[View]:
    """The views that a list of `tokens` can have, the declared one first if their number is that of its grid.

    Args:
        grid: declared rows and columns of patches.
        size: rows and columns of the image in pixels.
    """
    found: dict[tuple[Grid, int, Crop, str], View] = {}
    declared = grid[0] * grid[1] == tokens
    candidates = [*_of_the_declared_grid(grid, size), *_of_other_grids(tokens, grid)] if declared else []
    for view in [*candidates, *_with_extra_tokens(tokens, grid, size), *_squares(tokens, size)]:
        moved = view.name if view.move is not stay else ""
        found.setdefault((view.grid, view.skipped, view.crop, moved), view)
    return list(found.values())


def _of_the_declared_grid(grid: Grid, size: Size) -> Iterator[View]:
    yield View(AS_DECLARED, grid)
    yield View("mirrored", grid, move=lambda map_SFab, _: map_SFab.flip(-1))
    yield View("upside down", grid, move=lambda map_SFab, _: map_SFab.flip(-2))
    if grid[0] == grid[1]:
        yield View("rows and columns exchanged", grid, move=lambda map_SFab, _: map_SFab.mT)
    else:
        yield View(f"a grid of {grid[1]}x{grid[0]}", (grid[1], grid[0]))
    yield View(OTHER_SAMPLE, grid, move=lambda map_SFab, _: map_SFab.roll(1, 0))
    for name, dy, dx in (("right", 0, -1), ("left", 0, 1), ("down", -1, 0), ("up", 1, 0)):
        yield View(f"shifted {name} by a token", grid, move=partial(_shifted, dy=dy, dx=dx))
    for share in CENTRAL:
        yield View(f"the central {share:.1%} of each side", grid, crop=(share, share))
    for name, crop in _square_crops(size):
        yield View(name, grid, crop=crop)


def _shifted(map_SFab: Tensor, grid: Grid, dy: int, dx: int) -> Tensor:
    rows, columns = map_SFab.shape[-2] / grid[0], map_SFab.shape[-1] / grid[1]
    return map_SFab.roll((round(dy * rows), round(dx * columns)), (-2, -1))


def _of_other_grids(tokens: int, grid: Grid) -> Iterator[View]:
    """Lists that were read with another row length than they were written with."""
    rows, columns = grid
    yield View(f"rows of {columns + 1} tokens read as {columns}", (rows, columns + 1))
    if columns > 1:
        yield View(f"rows of {columns - 1} tokens read as {columns}", (-(-tokens // (columns - 1)), columns - 1))


def _with_extra_tokens(tokens: int, grid: Grid, size: Size) -> Iterator[View]:
    """Lists with other tokens before the patches, and of other grids, complete or cut to the declared number."""
    grids = {grid: ""} | dict(_other_patch_grids(grid, size))
    for (rows, columns), name in grids.items():
        for extra in range(MOST_EXTRA + 1):
            patches, complete = rows * columns, tokens == rows * columns + extra
            cut = tokens == grid[0] * grid[1] and tokens - extra <= patches
            if (not extra and not name) or not (complete or cut):
                continue
            before = f"{extra} other token{'s' * (extra != 1)} (class, registers) before the patches" if extra else ""
            yield View(", ".join(filter(None, (name, before))), (rows, columns), extra)


def _other_patch_grids(grid: Grid, size: Size) -> Iterator[tuple[Grid, str]]:
    """The grids of an image that was resized for patches of another size, read with that size and with the right
    one."""
    own = size[0] // grid[0]
    for patch in PATCHES:
        if patch == own:
            continue
        rows, columns = (max(1, round(side / patch)) for side in size)
        if (rows, columns) != grid:
            yield (rows, columns), f"patches of {patch} pixels, {rows}x{columns}"
        seen = max(1, rows * patch // own), max(1, columns * patch // own)
        if seen not in (grid, (rows, columns)):
            yield seen, f"sides of multiples of {patch} pixels in patches of {own}, {seen[0]}x{seen[1]}"


def _square_crops(size: Size) -> Iterator[tuple[str, Crop]]:
    """The central square of an image that is none, whole and cut."""
    side = min(size)
    if size[0] == size[1]:
        return
    for share in (1.0, SQUARE_CUT):
        crop = (share * side / size[0], share * side / size[1])
        yield f"the central square{'' if share == 1 else f', {share:.1%} of its side'}", crop


def _squares(tokens: int, size: Size) -> Iterator[View]:
    """Square grids that the number of tokens would make, as of 224 px: of the whole image and of its centre."""
    for extra in range(MOST_EXTRA + 1):
        side = round((tokens - extra) ** 0.5) if tokens > extra else 0
        if side < 2 or side * side != tokens - extra:
            continue
        before = f", {extra} other tokens before it" if extra else ""
        yield View(f"a {side}x{side} grid of the whole image{before}", (side, side), extra)
        squares = list(_square_crops(size)) or [(f"the central {SQUARE_CUT:.1%} of each side", (SQUARE_CUT,) * 2)]
        for name, crop in squares:
            yield View(f"a {side}x{side} grid of {name}{before}", (side, side), extra, (crop[0], crop[1]))


def displacement(view: View, tokens: int, grid: Grid) -> float | None:
    """The mean distance, in tokens of the declared grid, between the place where a token is stored and the one that it
    shows; None for another sample's."""
    if view.name == OTHER_SAMPLE:
        return None
    sides = zip(view.crop, grid, strict=True)
    fine = [torch.linspace(0.5 - share / 2, 0.5 + share / 2, 8 * side + 1) for share, side in sides]
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in fine]
    places = torch.stack(torch.meshgrid(*centres, indexing="ij"))[None]  # [1,2,a,b]
    shown_N2 = flat_features(view.move(places, grid), view.grid)[0, : view.count(tokens)]
    at = torch.arange(view.skipped, view.skipped + len(shown_N2))
    at = at[at < grid[0] * grid[1]]
    stored = torch.stack([(at // grid[1] + 0.5) / grid[0], (at % grid[1] + 0.5) / grid[1]], dim=1)
    apart = (shown_N2[: len(at)] - stored) * torch.tensor(grid)
    return float(apart.norm(dim=1).mean())


def flat_features(map_SFab: Tensor, grid: Grid) -> Tensor:
    """A map as features of the patches of a grid, row by row [S,h·w,F]: averaged, or interpolated to a finer grid."""
    rows, columns = map_SFab.shape[-2:]
    if rows >= grid[0] and columns >= grid[1]:
        resized = torch.nn.functional.adaptive_avg_pool2d(map_SFab, grid)
    else:
        resized = torch.nn.functional.interpolate(map_SFab, grid, mode="bilinear", align_corners=False)
    return resized.flatten(2).mT
