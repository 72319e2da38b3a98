"""Token grids for images that are not square, without torch.

A teacher is declared for square images: S x S pixels give a map of n x n cells (n = S / pixels per cell), which is
pooled to its `grid` of tokens. For other proportions cells and tokens keep their size: the image is resized to the
whole number of cells that its grid needs, and their map is pooled to the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from urepa.core.errors import UserError

Grid = tuple[int, int]


def grid_for(teacher: Any, shape: Sequence[int], side: int) -> Grid:
    """Rows and columns of a teacher's tokens for an image of `shape`, if a square image of `side` has the teacher's
    `grid`.

    Args:
        teacher: a declared or a built teacher.
        shape: rows and columns of the image, in the unit of `side`: image pixels or latent pixels.

    Raises UserError if the teacher takes square images only, that is, if it has no `grid_at`.
    """
    if tuple(shape) == (side, side):
        rows, columns = teacher.grid
        return rows, columns
    if not hasattr(teacher, "grid_at"):
        height, width = shape
        raise UserError(
            f"the teacher {type(teacher).__name__} takes square images only, but some images are {height}x{width}: "
            "choose another teacher, or a track of squares"
        )
    grid: Grid = teacher.grid_at(shape, side)
    return grid


def proportional_grid(grid: Sequence[int], shape: Sequence[int], side: int) -> Grid:
    """`grid` scaled by the ratio of `shape` to a square of `side`, each side rounded to the nearest integer (halves up)
    and at least 1."""
    rows, columns = (max(1, (2 * own * length + side) // (2 * side)) for own, length in zip(grid, shape, strict=True))
    return rows, columns


def map_size(grid: Sequence[int], square: Sequence[int], cells: int) -> Grid:
    """Rows and columns of the map that is pooled to `grid`, if a map of `cells` x `cells` is pooled to `square`: the
    same number of cells per token, rounded to whole cells and at least one per token."""
    rows, columns = (
        max(asked, (2 * asked * cells + own) // (2 * own)) for asked, own in zip(grid, square, strict=True)
    )
    return rows, columns


@dataclass(frozen=True)
class TeacherOnGrid:
    """A built teacher for images of one shape that is not square: a `urepa.core.protocols.TeacherNetwork` with the grid
    of that shape."""

    teacher: Any
    grid: Grid

    @property
    def width(self) -> int:
        """The width of a token."""
        return int(self.teacher.width)

    @property
    def image_size(self) -> int:
        """The side of the square image that the teacher is declared for, in pixels."""
        return int(self.teacher.image_size)

    def manifest(self) -> dict[str, Any]:
        """The facts that tokens on this grid depend on."""
        found: dict[str, Any] = self.teacher.manifest(self.grid)
        return found

    def tokens(self, images_B3HW: Any) -> Any:
        """Tokens [B,h·w,D] on this grid."""
        return self.teacher.tokens(images_B3HW, self.grid)

    def tokens_and_attention(self, images_B3HW: Any, blocks: Sequence[int]) -> Any:
        """Tokens [B,h·w,D] on this grid, and the attention of these blocks, by block."""
        return self.teacher.tokens_and_attention(images_B3HW, blocks, self.grid)

    def attention_grid(self) -> Grid:
        """Rows and columns of the patches from which tokens on this grid are pooled."""
        found: Grid = self.teacher.attention_grid(self.grid)
        return found

    def states(self, images_B3HW: Any) -> Any:
        """A vector [B,D] and the tokens [B,h·w,D] on this grid, not of unit length."""
        return self.teacher.states(images_B3HW, self.grid)


def teacher_on_grid(teacher: Any, grid: Grid) -> Any:
    """A built teacher for images with this grid: the teacher itself if that is its own grid."""
    return teacher if tuple(teacher.grid) == grid else TeacherOnGrid(teacher, grid)
