"""Several teachers at once, each with its own heads, token store and weight (`loss.teachers`)."""

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
    """REPA's loss averaged over several encoders, each with a projector of its own (arXiv 2410.06940, §4)."""

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
            f"The backbone is aligned to {len(self.teachers)} teachers at once, each with its own heads and the "
            "weights in the alignment terms given above."
        )


class SeveralTeachers:
    """Several built teachers.

    Args:
        teachers: by the names that their heads, stores and metrics have.
    """

    def __init__(self, teachers: dict[str, Any]) -> None:
        check_names(teachers)
        self.teachers = teachers


def check_names(names: Collection[str]) -> None:
    """Raises UserError if there are fewer than two teachers, or if a name is not fit for folders and metrics."""
    if len(names) < 2:
        raise UserError(
            "teacher=several needs two teachers or more: +teacher@teacher.teachers.NAME=NAME of conf/teacher for "
            "each; for one, teacher=NAME"
        )
    for name in names:
        if re.fullmatch("[A-Za-z0-9]+", name) is None:
            raise UserError(f"teacher.teachers.{name}: a teacher's name may only have letters and digits")


def by_name(teacher: Any | None) -> dict[str, Any]:
    """The built teachers by name: none for None, a single teacher as `ALONE`, or several by their names."""
    if teacher is None:
        return {}
    return teacher.teachers if isinstance(teacher, SeveralTeachers) else {ALONE: teacher}


def name_at(part: str, teacher: str) -> str:
    """The name in metrics of a part that belongs to a teacher; the part's own name if there is only one teacher."""
    return f"{part}/{teacher}" if teacher else part
