"""Grids of tokens for images that are not square, without torch.

A teacher is declared by its square image of S x S pixels, its map of n x n cells (n = S / pixels per cell) and its
`grid` of tokens, to which the map is pooled. An image of other proportions is seen with cells and tokens of the same
size: it is resized to whole cells, as many as its grid needs, whose map is pooled to the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from urepa.core.errors import UserError

Grid = tuple[int, int]


def grid_for(teacher: Any, shape: Sequence[int], side: int) -> Grid:
    """Rows and columns of a teacher's tokens for an image of `shape`, of which a square one of `side` has its `grid`.

    Args:
        teacher: a declared one or a built one.
        shape: rows and columns of the image, in the unit of `side`: pixels, or pixels of a latent.

    Raises UserError if the teacher answers for squares alone: it has no `grid_at`.
    """
    if tuple(shape) == (side, side):
        rows, columns = teacher.grid
        return rows, columns
    if not hasattr(teacher, "grid_at"):
        height, width = shape
        raise UserError(
            f"the teacher {type(teacher).__name__} takes square images alone, and there are some of {height}x{width}: "
            "choose another teacher, or a track of squares"
        )
    grid: Grid = teacher.grid_at(shape, side)
    return grid


def proportional_grid(grid: Sequence[int], shape: Sequence[int], side: int) -> Grid:
    """`grid` in the proportions of `shape` to a square of `side`, each side to the nearest whole number (halves up),
    and at least 1."""
    rows, columns = (max(1, (2 * own * length + side) // (2 * side)) for own, length in zip(grid, shape, strict=True))
    return rows, columns


def map_size(grid: Sequence[int], square: Sequence[int], cells: int) -> Grid:
    """Rows and columns of the map that is pooled to `grid`, where one of `cells` x `cells` is pooled to `square`: as
    many cells a token, to the nearest whole number of cells, and at least one a token."""
    rows, columns = (
        max(asked, (2 * asked * cells + own) // (2 * own)) for asked, own in zip(grid, square, strict=True)
    )
    return rows, columns


@dataclass(frozen=True)
class TeacherOnGrid:
    """A built teacher for images of one shape that is not square: as `urepa.core.protocols.TeacherNetwork`, with the
    grid of that shape."""

    teacher: Any
    grid: Grid

    @property
    def width(self) -> int:
        """Of a token."""
        return int(self.teacher.width)

    @property
    def image_size(self) -> int:
        """Side of the square image that the teacher is declared by, pixels."""
        return int(self.teacher.image_size)

    def manifest(self) -> dict[str, Any]:
        """What tokens on this grid depend on."""
        found: dict[str, Any] = self.teacher.manifest(self.grid)
        return found

    def tokens(self, images_B3HW: Any) -> Any:
        """Tokens [B,h·w,D] on this grid."""
        return self.teacher.tokens(images_B3HW, self.grid)


def teacher_on_grid(teacher: Any, grid: Grid) -> Any:
    """A built teacher as it sees images that have this grid: itself where the grid is its own."""
    return teacher if tuple(teacher.grid) == grid else TeacherOnGrid(teacher, grid)
