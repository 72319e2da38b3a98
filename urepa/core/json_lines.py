"""Files with one JSON object per line that grow by appending (metrics.jsonl, bad_samples.jsonl, jobs.jsonl).

A process that is killed while appending leaves an incomplete last line. Readers skip it, and the next `append` removes
it. Any other unreadable line is damaged. Readers return it as such and continue with the next line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BLOCK = 1 << 16  # bytes


class Line(NamedTuple):
    """A line: its value, or `damage`, a text that completes the sentence "line 6 ..."."""

    number: int  # from 1
    end: int  # offset of the next line, after this one's newline even if that is not written yet
    value: dict[str, Any]  # {} if it is damaged
    damage: str = ""


BEGINNING = Line(0, 0, {})


def read_lines(path: Path, after: Line = BEGINNING) -> Iterator[Line]:
    """The lines after `after`, one at a time; none if the file does not exist."""
    if not path.exists():
        return
    number, end = after.number, after.end
    with open(path, "rb") as file:
        file.seek(end)
        for raw in file:
            whole = raw.endswith(b"\n")
            value, damage = _parse_line(raw)
            if damage and not whole:
                return
            number, end = number + 1, end + len(raw) + (not whole)
            yield Line(number, end, value, damage)


def append(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Appends a line for each value. A lock allows several processes to append to one file."""
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _end_last_line(file)
        file.write(data)


def truncate_at(path: Path, end: int) -> None:
    """Truncates the file at the offset `end`, which must be the end of a line. The lines before are unchanged."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(min(end, size))
        if end > size:  # the last line lacks its newline
            file.seek(size)
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


def count_lines(path: Path) -> int:
    """The number of lines that end in a newline."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK), b""))


def last_value(path: Path) -> dict[str, Any]:
    """The value of the last line; {} if it is damaged or incomplete, or if there is none."""
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        return _parse_line(_last_line(file))[0]


def _parse_line(raw: bytes) -> tuple[dict[str, Any], str]:
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError:
        return {}, "is not UTF-8"
    except json.JSONDecodeError:
        return {}, "is not JSON"
    return (value, "") if isinstance(value, dict) else ({}, "is not a JSON object")


def _end_last_line(file: BinaryIO) -> None:
    """Appends the missing newline to a readable last line, or removes the incomplete line of a killed process."""
    last = _last_line(file)
    if not last or last.endswith(b"\n"):
        return
    if _parse_line(last)[1]:
        file.truncate(file.seek(0, os.SEEK_END) - len(last))
    else:
        file.write(b"\n")


def _last_line(file: BinaryIO) -> bytes:
    """The last line, with its newline if it has one."""
    begin = file.seek(0, os.SEEK_END)
    tail = b""
    while begin > 0 and b"\n" not in tail[:-1]:
        before = max(0, begin - BLOCK)
        file.seek(before)
        tail = file.read(begin - before) + tail
        begin = before
    return tail[tail.rfind(b"\n", 0, -1) + 1 :]
