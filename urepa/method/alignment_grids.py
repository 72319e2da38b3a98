"""The grid on which a tap's tokens and a teacher's are compared if theirs differ (`loss.grid`). Does not import torch.

A head projects the tap's tokens and resizes them to that grid (`urepa.core.protocols.HeadNetwork`);
`urepa.models.layers.resize_tokens` resizes the teacher's.
"""

from __future__ import annotations

from typing import Any

from urepa.core.descriptions import shape
from urepa.core.errors import UserError

Grid = tuple[int, int]  # rows and columns

TEACHER, STUDENT, SMALLER = "teacher", "student", "smaller"
WORDS = (TEACHER, STUDENT, SMALLER)


def policy_of(loss: Any) -> Any:
    """The setting `grid` of a loss, declared or built; the teacher's grid if the loss has no such setting."""
    return getattr(loss, "grid", TEACHER)


def check_policy(policy: Any) -> None:
    """Raises UserError if the policy is neither one of `WORDS` nor a grid."""
    is_grid = isinstance(policy, list) and len(policy) == 2 and all(type(side) is int and side > 0 for side in policy)
    if policy not in WORDS and not is_grid:
        raise UserError(
            f"loss.grid={policy}: give {', '.join(WORDS)}, or rows and columns as [16,16], which both sides are "
            "resized to"
        )


def compared_on(policy: Any, tap: Grid, teacher: Grid) -> Grid:
    """The grid of the comparison. "smaller" is the grid with fewer tokens; if both have as many, the teacher's."""
    if policy == TEACHER:
        return teacher
    if policy == STUDENT:
        return tap
    if policy == SMALLER:
        return min(teacher, tap, key=lambda grid: grid[0] * grid[1])
    rows, columns = policy
    return rows, columns


def description(policy: Any) -> list[str]:
    """The sentence of `describe` on the grid of the comparison; none for the teacher's, which heads describe."""
    if policy == TEACHER:
        return []
    place = {STUDENT: "the tap's grid", SMALLER: "the smaller of the tap's and the teacher's grid"}
    where = place[policy] if policy in WORDS else f"a grid of {shape(policy)}"
    return [
        f"A tap and a teacher are compared on {where}. If the teacher's own grid differs, its tokens are interpolated "
        "bilinearly to this grid and normalised to unit length again."
    ]
