"""Files of lines: half a last line is ignored, any other unreadable line is damage, and reading continues after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from urepa.core.json_lines import BLOCK, append, count_lines, read_lines, truncate_at

THREE = b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'
WRITER = "import sys; from pathlib import Path; from urepa.core.json_lines import append\n"


def test_lines_and_where_they_end(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    assert list(read_lines(file)) == []
    file.write_bytes(THREE)
    lines = list(read_lines(file))
    assert [(line.number, line.end, line.value, line.damage) for line in lines] == [
        (1, 9, {"a": 1}, ""),
        (2, 18, {"a": 2}, ""),
        (3, 27, {"a": 3}, ""),
    ]
    assert list(read_lines(file, lines[0])) == lines[1:]
    assert list(read_lines(file, lines[2])) == []
    assert count_lines(file) == 3


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b'{"a" 2}', "is not JSON"),
        (b"", "is not JSON"),
        (b"\0" * 8, "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b"[2]", "is not a JSON object"),
        (b'{"a": {"a": 2}', "is not JSON"),
    ],
)
def test_damage_does_not_end_the_file(tmp_path: Path, bad: bytes, why: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(THREE.replace(b'{"a": 2}', bad))
    assert [(line.number, line.value, line.damage) for line in read_lines(file)] == [
        (1, {"a": 1}, ""),
        (2, {}, why),
        (3, {"a": 3}, ""),
    ]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_line_that_a_kill_has_cut(tmp_path: Path, cut: int) -> None:
    """If only its newline is missing, it is a line; otherwise it is ignored, and the next line starts afresh."""
    file = tmp_path / "x.jsonl"
    file.write_bytes(THREE[:-cut])
    there = [{"a": 1}, {"a": 2}, *([{"a": 3}] if cut == 1 else [])]
    assert [(line.value, line.damage) for line in read_lines(file)] == [(value, "") for value in there]
    append(file, [{"a": 4}])
    assert file.read_text() == "".join(json.dumps(value) + "\n" for value in [*there, {"a": 4}])


def test_half_a_line_longer_than_a_block_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(THREE + b'{"a": "' + b"x" * (2 * BLOCK))
    append(file, [{"a": 4}])
    assert file.read_bytes() == THREE + b'{"a": 4}\n'


def test_reading_continues_behind_a_line_whose_newline_comes_later(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(THREE[:-1])
    last = list(read_lines(file))[-1]
    append(file, [{"a": 4}])
    assert [line.value for line in read_lines(file, last)] == [{"a": 4}]


@pytest.mark.parametrize("written", [THREE, THREE[:-1], THREE + b'{"a": '])
def test_cutting_a_file_keeps_the_bytes_before(tmp_path: Path, written: bytes) -> None:
    file = tmp_path / "x.jsonl"
    truncate_at(file, 0)
    assert not file.exists()
    for kept in (3, 2, 0):
        file.write_bytes(written)
        ends = [0, *(line.end for line in read_lines(file))]
        truncate_at(file, ends[kept])
        assert file.read_bytes() == THREE[: 9 * kept]


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    """The lines are longer than a single write, in a file that ends with half a line."""
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a')
    each = 'for i in range(100): append(Path(sys.argv[1]), [{"i": i, "who": sys.argv[2], "x": "x" * 20000}])'
    writers = [subprocess.Popen([sys.executable, "-c", WRITER + each, str(file), str(who)]) for who in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = list(read_lines(file))
    assert not [line for line in lines if line.damage]
    for who in "012":
        assert [line.value["i"] for line in lines if line.value["who"] == who] == list(range(100))
