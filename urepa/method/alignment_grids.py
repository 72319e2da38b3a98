"""On which grid a tap's tokens and a teacher's are compared where theirs differ: what `loss.grid` means. Without torch.

A head takes the tap's tokens to that grid after projecting them (`urepa.core.protocols.HeadNetwork`); the teacher's are
resized to it by `urepa.models.layers.resize_tokens`.
"""

from __future__ import annotations

from typing import Any

from urepa.core.descriptions import shape
from urepa.core.errors import UserError

Grid = tuple[int, int]  # rows and columns

TEACHER, STUDENT, SMALLER = "teacher", "student", "smaller"
WORDS = (TEACHER, STUDENT, SMALLER)


def policy_of(loss: Any) -> Any:
    """`grid` of a loss, declared or built; one without it compares on the teacher's grid."""
    return getattr(loss, "grid", TEACHER)


def check_policy(policy: Any) -> None:
    """UserError where it is neither one of `WORDS` nor a grid."""
    is_grid = isinstance(policy, list) and len(policy) == 2 and all(type(side) is int and side > 0 for side in policy)
    if policy not in WORDS and not is_grid:
        raise UserError(
            f"loss.grid={policy}: give {', '.join(WORDS)}, or rows and columns as [16,16], which both sides are "
            "resized to"
        )


def compared_on(policy: Any, tap: Grid, teacher: Grid) -> Grid:
    """The grid of the comparison. Of "smaller" it is the one with fewer tokens, at as many the teacher's."""
    if policy == TEACHER:
        return teacher
    if policy == STUDENT:
        return tap
    if policy == SMALLER:
        return min(teacher, tap, key=lambda grid: grid[0] * grid[1])
    rows, columns = policy
    return rows, columns


def description(policy: Any) -> list[str]:
    """Where the two sides are compared, as `describe` writes it; nothing of the teacher's grid, as heads say that."""
    if policy == TEACHER:
        return []
    place = {STUDENT: "the tap's grid", SMALLER: "the smaller of the tap's and the teacher's grid"}
    where = place[policy] if policy in WORDS else f"a grid of {shape(policy)}"
    return [
        f"A tap and a teacher are compared on {where}: where the teacher has another one, its tokens are interpolated "
        "bilinearly to it, and then have unit length again."
    ]
