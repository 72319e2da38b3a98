"""Mistakes of users, command by command: the arguments, the situation, and what the message must contain."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mistakes.parts import TINY, closed


@dataclass(frozen=True)
class Mistake:
    """`python -m COMMAND TYPED`, typed in a shell, in a folder that holds the parts `beside` (see `parts`)."""

    command: str
    typed: str
    says: str  # a regular expression, found in the one line
    beside: str = ""  # names of parts
    change: Callable[[Path], None] | None = None  # made to the folder before
    bound: bool = False  # by the permissions of files, as users who are not root are
    reads: bool = False  # is found in the content of files, for which heavy packages may be imported


def of(command: str, *rows: tuple) -> list[Mistake]:
    """Rows of one command: the arguments, the message, and the situation."""
    return [Mistake(command, *row) for row in rows]


def tiny(*rows: tuple) -> list[Mistake]:
    """Rows of `train` beside the caches of a tiny run, whose arguments come first."""
    typed = [(f"{shlex.join(TINY)} {row[0]}", row[1]) for row in rows]
    return [Mistake("urepa.train", *words, "caches", *row[2:]) for words, row in zip(typed, rows, strict=True)]


def in_content(mistakes: list[Mistake]) -> list[Mistake]:
    """The same, with the mistake in the content of files."""
    return [replace(mistake, reads=True) for mistake in mistakes]


def bound(command: str, typed: str, says: str, beside: str, shut: str) -> Mistake:
    """The same, in a folder without write permission."""
    return Mistake(command, typed, says, beside, closed(shut), bound=True)
