"""A job's attempts, the record of submitted jobs (the book), and how the exit codes of a job's commands are handled."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from urepa.cluster.slurm_job import (
    AGAIN,
    NO_ERROR_MESSAGE,
    UNEVALUATED,
    Attempts,
    Book,
    Entry,
    Job,
    job_from,
    last_error,
)
from urepa.core.errors import NOT_EVALUATED, UserError


def test_a_job_gives_up_after_three_attempts_at_the_same_step(tmp_path: Path) -> None:
    """As after each requeue, from the stored note alone. A step of progress restarts the count."""

    def begin(step: int) -> str | None:
        return Attempts(tmp_path / "7.again").begin("arm", step)

    assert [begin(0), begin(0), begin(0)] == [None] * 3
    assert begin(6) is None
    Attempts(tmp_path / "7.again").record_failure("ValueError: bad")
    assert begin(6) is None
    assert begin(6) is None
    assert begin(6) == f"arm failed 3 times at step 6 and is given up; the last time: {NO_ERROR_MESSAGE}"
    Attempts(tmp_path / "7.again").record_failure("ValueError: bad")
    assert begin(6) == "arm failed 3 times at step 6 and is given up; the last time: ValueError: bad"


def test_a_regular_end_resets_the_attempts(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "7.again")
    for _ in range(7):
        assert attempts.begin("arm", 0) is None
        attempts.end()
    assert not attempts.file.exists()


def test_a_step_is_the_last_checkpoint(tmp_path: Path) -> None:
    job = Job("arm", (), str(tmp_path))
    assert job.step() == 0
    for name in ("step_00000009", "step_00000012", ".step_00000015.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert job.step() == 12
    assert Job("caches", ()).step() == 0


def test_the_book_takes_precedence(tmp_path: Path) -> None:
    jobs = [Job(f"arm {i}", (("urepa.train", "seed=0", f"a={i}"), ("urepa.evaluate",)), f"/run{i}") for i in range(2)]
    book = Book(tmp_path / "deep")
    assert book.entries() == []
    first = [Entry(job, f"12_{i}", f"{i}.err", 1.0) for i, job in enumerate(jobs)]
    book.add(first)
    last = Entry(jobs[1], "12_1", "1.err", 1.0, state="failed")
    book.add([last])
    assert Book(tmp_path / "deep").entries() == [first[0], last]
    assert job_from(asdict(jobs[0])) == jobs[0]


def test_a_damaged_book_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    """Half a last line is left by a killed launcher and allowed. If another line were ignored, a job would be submitted
    twice."""
    book = Book(tmp_path)
    entries = [Entry(Job(f"arm {i}", (("urepa.train", f"seed={i}"),)), f"12_{i}", "x.err", 1.0) for i in range(3)]
    book.add(entries[:2])
    with open(book.file, "a") as file:
        file.write('{"job": {"na')
    assert book.entries() == entries[:2]
    book.add(entries[2:])
    assert book.entries() == entries
    whole = book.file.read_text().splitlines(keepends=True)
    for bad, why in (("#" + whole[1][1:], "is not JSON"), ('{"id": "12_1"}\n', "is not a submission")):
        book.file.write_text("".join([whole[0], bad, whole[2]]))
        assert book.read() == ([entries[0], entries[2]], f"line 2 of {book.file} {why}")
        with pytest.raises(UserError, match=f"line 2 of .*jobs.jsonl {why}, so a submitted job may be missing"):
            book.entries()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("error: one\nerror: two\nsrun: exit\n", "two"),
        ("step 3\nKilled\n\n", "Killed"),
        ("", "{log} is empty"),
        (None, "there is no {log}"),
    ],
)
def test_last_error(tmp_path: Path, log: str | None, said: str) -> None:
    file = tmp_path / "log"
    if log is not None:
        file.write_text(log)
    assert last_error(file) == said.format(log=file)


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("module", "code", "error"),
    [
        ("import sys; print(sys.argv)", 0, ""),
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(1)", 1, ""),
        ("raise SystemExit(143)", 143, ""),
        ("raise KeyError('x')", AGAIN, "error: KeyError: 'x'"),
    ],
)
def test_exit_codes(tmp_path: Path, module: str, code: int, error: str) -> None:
    """In a separate process; the second command runs if the first succeeds."""
    (tmp_path / "first.py").write_text(module)
    (tmp_path / "second.py").write_text("print('second here')")
    job = Job("two", (("first", "a=1"), ("second",)))
    script = f"from urepa.cluster.slurm_job import *\n{job!r}.attempt()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("second here" in done.stdout) == (code == 0)
    assert "$ python -m first a=1\n" in done.stdout
    assert done.stderr.rstrip().endswith(error)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["here", None])
def test_a_finished_run_with_a_failed_evaluation_does_not_block_dependent_jobs(tmp_path: Path, run: str | None) -> None:
    """This does not hold for a job that is only an evaluation."""
    (tmp_path / "first.py").write_text(f"raise SystemExit({NOT_EVALUATED})")
    script = f"from urepa.cluster.slurm_job import *\n{Job('one', (('first',),), run)!r}.attempt()"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == ((NOT_EVALUATED, "") if run is None else (0, f"{UNEVALUATED}\n"))
