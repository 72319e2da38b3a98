"""Several teachers at once, each with heads, a token store and a weight (`loss.teachers`) of its own."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from urepa.core.comparability import ALIGNMENT
from urepa.core.declared_keys import part
from urepa.core.errors import UserError
from urepa.core.protocols import OneTeacher
from urepa.core.teacher_names import ALONE


@dataclass
class Several:
    """REPA's loss with several encoders, the mean over them (arXiv 2410.06940, §4; one projector each)."""

    _target_: str = "urepa.models.teachers.several_teachers.Several"
    teachers: dict[str, Any] = part("the teachers, by name", {})

    alters: ClassVar[tuple[str, ...]] = ALIGNMENT

    def members(self) -> dict[str, OneTeacher]:
        return self.teachers

    def check(self) -> None:
        check_names(self.teachers)
        for one in self.teachers.values():
            one.check()

    def hub_files(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        for one in self.teachers.values():
            for name, patterns in one.hub_files().items():
                files.setdefault(name, []).extend(patterns)
        return files

    def build(self) -> SeveralTeachers:
        return SeveralTeachers({name: one.build() for name, one in self.teachers.items()})

    def description(self) -> str:
        return (
            f"The backbone is aligned to {len(self.teachers)} teachers at once, each with heads of its own and the "
            "shares of the alignment terms that are given above."
        )


class SeveralTeachers:
    """The built ones.

    Args:
        teachers: by the names that heads, stores and metrics have.
    """

    def __init__(self, teachers: dict[str, Any]) -> None:
        check_names(teachers)
        self.teachers = teachers


def check_names(names: Collection[str]) -> None:
    """Raises UserError if several teachers are fewer than two, or a name would not do for a folder or a metric."""
    if len(names) < 2:
        raise UserError(
            "teacher=several needs two teachers or more: +teacher@teacher.teachers.NAME=NAME of conf/teacher for "
            "each; for one, teacher=NAME"
        )
    for name in names:
        if re.fullmatch("[A-Za-z0-9]+", name) is None:
            raise UserError(f"teacher.teachers.{name}: a teacher's name is made of letters and digits")


def by_name(teacher: Any | None) -> dict[str, Any]:
    """The built teachers there are: none, the one as `ALONE`, or several by their names."""
    if teacher is None:
        return {}
    return teacher.teachers if isinstance(teacher, SeveralTeachers) else {ALONE: teacher}


def name_at(part: str, teacher: str) -> str:
    """What belongs to a teacher at a tap, in a metric: the part's own name where the teacher is the only one."""
    return f"{part}/{teacher}" if teacher else part
