"""metrics.jsonl: what counts as damage, which rows belong to a checkpoint, and that no other row is lost."""

from __future__ import annotations

import ast
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.runs.metrics import Beginning, MetricsLog, Rows, checkpoint_rows, last_values, read_rows

ROOT = Path(__file__).parents[2]
ROWS = [{"step": step, "train/total": 1 / step, "lr": 0.5, "time": 1000 + step} for step in (1, 5, 10, 15)]
FINAL = {"step": 15, "final/fd/pixels": "nan", "floor/fd/pixels": None, "time": 2000}


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def damaged(file: Path, number: int) -> None:
    """Damages one byte of a line."""
    lines = file.read_bytes().split(b"\n")
    lines[number - 1] = b"#" + lines[number - 1][1:]
    file.write_bytes(b"\n".join(lines))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "metrics.jsonl", [*ROWS, FINAL])


@pytest.mark.slow
def test_one_damaged_byte_affects_no_other_row(file: Path) -> None:
    """A byte that is invalid in UTF-8, at every position: the line is named and the other rows are read."""
    whole = file.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for at in range(len(whole) - 1):  # the last newline is that of a whole line without one
        file.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        line = sum(end < at for end in ends)
        lost = {line, line + 1} if at in ends else {line}
        rows = Rows(file)
        assert list(rows) == [row for i, row in enumerate([*ROWS, FINAL]) if i not in lost]
        assert rows.damage().startswith(f"line {line + 1} of metrics.jsonl is not UTF-8; put the file back from a copy")
        with pytest.raises(UserError, match=f"is damaged: line {line + 1} of metrics.jsonl"):
            read_rows(file)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"step": "10"}, "has no integer step"),
        ({"step": True}, "has no integer step"),
        ({"step": None}, "has no integer step"),
        ({"time": 1.5}, "has no integer time"),
        ({"lr": "0.5"}, "has '0.5' as lr, which is not a number"),
        ({"lr": [0.5]}, "has [0.5] as lr, which is not a number"),
        ({"step": 4}, "is of step 4, after one of step 5"),
    ],
)
def test_lines_that_are_not_rows(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    rows = [row | changes if row["step"] == 10 else row for row in ROWS]
    read = Rows(written(tmp_path / "metrics.jsonl", rows))
    assert list(read) == [ROWS[0], ROWS[1], ROWS[3]]
    assert read.damage() == (
        f"line 3 of metrics.jsonl {why}; put the file back from a copy, or delete what is damaged if the run can do "
        "without it"
    )


def test_a_damaged_larger_step_is_found_by_the_rows_after_it(tmp_path: Path) -> None:
    rows = [row | {"step": 70} if row["step"] == 5 else row for row in ROWS]
    read = Rows(written(tmp_path / "metrics.jsonl", rows))
    assert [row["step"] for row in read] == [1, 70]
    assert "line 3 of metrics.jsonl is of step 10, after one of step 70 (more damaged lines: 1)" in read.damage()


def test_a_finished_runs_rows_end_with_it(file: Path) -> None:
    rows = Rows(file)
    assert list(rows) == [*ROWS, FINAL]
    assert (rows.damage(), rows.damage(15)) == ("", "")
    assert rows.damage(20) == "metrics.jsonl ends at step 15 and the run at step 20; put the file back from a copy"
    nothing = Rows(file.with_name("none"))
    assert (list(nothing), nothing.damage(20)) == ([], "")


def test_half_a_last_line_is_normal(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])
    assert read_rows(file) == ROWS


def test_last_values() -> None:
    """By hand: final evaluations count only at the end, and null withdraws a value."""
    rows = [*ROWS, FINAL, {"step": 15, "final/fd/pixels": 2.0, "time": 3}, {"step": 20, "lr": 0.25, "time": 4}]
    assert last_values(rows, 15) == {
        "train/total": 1 / 15,
        "lr": 0.25,
        "final/fd/pixels": 2.0,
        "floor/fd/pixels": None,
    }
    assert last_values(rows, 20) == {"train/total": 1 / 15, "lr": 0.25}


# --- a checkpoint's rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "step", "and_final", "there"),
    [(0, 0, False, 0), (2, 5, False, 2), (4, 15, False, 4), (4, 15, True, 5), (3, 14, False, 3)],
)
def test_what_a_checkpoint_keeps(file: Path, rows: int, step: int, and_final: bool, there: int) -> None:
    """The same bytes, however they were written, without half a line after them."""
    text = file.read_text().replace("0.5", "5.00e-1")
    file.write_text(text + '{"step": 20, "tra')
    log = MetricsLog(file)
    assert log.rows == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.cut(rows, step, and_final)
    assert file.read_text() == "".join(text.splitlines(keepends=True)[:there])
    assert log.rows == there
    log.append({"step": 20})
    assert log.rows == there + 1 == len(read_rows(file))


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_damage_among_a_checkpoints_rows_is_refused_and_nothing_changes(file: Path, bad: int) -> None:
    damaged(file, bad)
    before = file.read_bytes()
    why = rf"checkpoint of step 10 \(line {bad} is not JSON\): put the file back from a copy, or move it away"
    with pytest.raises(UserError, match=why):
        MetricsLog(file).cut(3, 10)
    assert file.read_bytes() == before


def test_damaged_rows_after_a_checkpoint_are_computed_again(file: Path) -> None:
    damaged(file, 4)
    MetricsLog(file).cut(3, 10)
    assert read_rows(file) == ROWS[:3]


def test_damage_among_final_evaluations_that_stay_is_refused(file: Path) -> None:
    damaged(file, 5)
    with pytest.raises(UserError, match=r"line 5 is not JSON"):
        MetricsLog(file).cut(4, 15, and_final=True)
    assert read_rows_of(file) == 4


def read_rows_of(file: Path) -> int:
    return len(list(Rows(file)))


def test_missing_rows_are_refused(file: Path) -> None:
    written(file, ROWS[:2])
    with pytest.raises(UserError, match=r"checkpoint of step 10 \(it has 2 rows up to that step, not 3\)"):
        MetricsLog(file).cut(3, 10)
    written(file, [ROWS[0], *ROWS[2:]])  # as many, but not up to that step
    with pytest.raises(UserError, match=r"it has 2 rows up to that step"):
        MetricsLog(file).cut(3, 10)
    assert read_rows_of(file) == 3


def test_after_the_file_is_moved_away_a_new_one_begins(file: Path) -> None:
    """Also if the new file already has rows after the checkpoint, from a process that was killed before its next
    one."""
    file.unlink()
    log = MetricsLog(file)
    with pytest.warns(UserWarning, match="has none of the 3 rows that the checkpoint of step 10 counts: a new one"):
        log.cut(3, 10)
    assert not file.exists()
    log.append({"step": 15})
    with pytest.warns(UserWarning, match="a new one begins"):
        log.cut(3, 10)
    assert (log.rows, file.read_bytes()) == (0, b"")
    log.append({"step": 15})
    log.append({"step": 20})
    log.cut(1, 15)
    assert [row["step"] for row in read_rows(file)] == [15]


def test_a_damaged_first_step_is_not_taken_for_a_new_file(file: Path) -> None:
    written(file, [ROWS[0] | {"step": 700}, *ROWS[1:]])
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"line 2 is of step 5, after one of step 700"):
        MetricsLog(file).cut(3, 10)
    assert file.read_bytes() == before
    assert checkpoint_rows(file.with_name("none"), 0, 0) == Beginning(0, 0)


def test_times_of_rows_ascend_where_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a process, in the next one, after half a line of a killed one, and after a cut."""
    file = tmp_path / "metrics.jsonl"
    clock = 2_000_000.0
    monkeypatch.setattr("time.time", lambda: clock)
    log = MetricsLog(file)
    log.append({"step": 1, "a": 1.0})
    clock = 1_000_000.0
    log.append({"step": 2, "a": 1.0})
    MetricsLog(file).append({"step": 3, "a": 1.0})
    assert [row["time"] for row in read_rows(file)] == [2_000_000_000, 2_000_000_001, 2_000_000_002]
    with open(file, "a") as half:
        half.write('{"step": 4, "a"')
    killed = MetricsLog(file)
    killed.cut(2, 2)
    killed.append({"step": 3, "a": 1.0})
    assert [row["time"] for row in read_rows(file)] == [2_000_000_000, 2_000_000_001, 2_000_000_002]
    clock = 3_000_000.0
    killed.append({"step": 4, "a": 1.0})
    assert read_rows(file)[-1]["time"] == 3_000_000_000


@pytest.mark.slow
def test_no_duration_is_a_difference_of_the_wall_clock() -> None:
    """The wall clock may be set back. Values that are stored as times of day are listed here."""
    users = {"urepa/runs/metrics.py", "urepa/cluster/slurm_job.py", "urepa/runs/trackers/mlflow_sender.py"}
    found = set()
    for folder in ("urepa", "launchers"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            asks = {ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
            if asks & {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}:
                found.add(file.relative_to(ROOT).as_posix())
            assert "from time import" not in text
    assert found == users
