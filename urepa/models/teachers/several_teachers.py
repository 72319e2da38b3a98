"""Several teachers at once, each with heads, a token store and a weight (`loss.teachers`) of its own."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from urepa.core.errors import UserError
from urepa.core.teacher_names import ALONE


class Several:
    """REPA's loss with several encoders is the mean over them (arXiv 2410.06940, §4; one projector each).

    Args:
        teachers: by names that heads, stores and metrics bear.
    """

    def __init__(self, teachers: dict[str, Any]) -> None:
        check_names(teachers)
        self.teachers = teachers


def check_names(names: Collection[str]) -> None:
    """UserError where several teachers are fewer than two, or a name would not do for a folder or a metric."""
    if len(names) < 2:
        raise UserError(
            "teacher=several needs two teachers or more: +teacher@teacher.teachers.NAME=NAME of conf/teacher for "
            "each; for one, teacher=NAME"
        )
    for name in names:
        if re.fullmatch("[A-Za-z0-9]+", name) is None:
            raise UserError(f"teacher.teachers.{name}: a teacher's name is made of letters and digits")


def by_name(teacher: Any | None) -> dict[str, Any]:
    """The teachers there are: none, the one as `ALONE`, or several by their names."""
    if teacher is None:
        return {}
    return teacher.teachers if isinstance(teacher, Several) else {ALONE: teacher}


def name_at(part: str, teacher: str) -> str:
    """What belongs to a teacher at a tap, in a metric: the part's own name where the teacher is the only one."""
    return f"{part}/{teacher}" if teacher else part
