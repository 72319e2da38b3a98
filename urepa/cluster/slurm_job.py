"""A job is one or more of our commands that some machine runs; here is what happens inside it, and the book in
which every submission is noted.

A job that ends badly is tried again where it stopped; one that failed three times at the same step is given up.

submitit requeues a job after a signal; what it does not do is retry a job that raised or was killed while its step
still advances.
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from urepa.core import ranks, safe_output
from urepa.core.errors import NOT_EVALUATED, UserError
from urepa.core.files import read_json, write_whole
from urepa.core.json_lines import append, read_lines
from urepa.runs.run_folder import RunFolder
from urepa.runs.summary import read_summary

FOLDER = "outputs/.jobs"  # scripts, logs and notes of all jobs, below the working folder
TRIES = 3  # at the same step
AGAIN = 75  # exit code of a job that raised and may be tried again; 1 is for mistakes that trying again will not mend
UNEVALUATED = "the run is finished, but an evaluation at its end failed; urepa.evaluate does it again"
NO_ERROR_MESSAGE = "it ended without a word: killed, out of memory, or its node was lost"


@dataclass(frozen=True)
class Job:
    """Commands to run one after the other, each a module and its arguments, as `python -m` takes them."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    run: str | None = None  # the folder of the run that is trained: its last checkpoint tells progress

    @property
    def identity(self) -> str | tuple[tuple[str, ...], ...]:
        """Equal for two jobs that do the same work: the run's folder, or the commands."""
        return self.commands if self.run is None else self.run

    def step(self) -> int:
        """How far it has come."""
        if self.run is None:
            return 0
        found = (p.name.removeprefix("step_") for p in Path(self.run).glob("checkpoints/step_*"))
        return max((int(n) for n in found if n.isdigit()), default=0)

    def is_finished(self) -> bool:
        """Has its run reached the end that its config names?"""
        assert self.run is not None
        summary, config = read_summary(Path(self.run)), RunFolder(Path(self.run)).stored_config()
        return summary is not None and config is not None and summary["step"] == config["trainer"]["max_steps"]

    def run_here(self) -> None:
        """In this process. A command that exits ends the job with its code, unless it is 0. A run that is trained to
        its end has done what others wait for: that an evaluation of it failed is said, and does not stop them."""
        for module, *arguments in self.commands:
            if ranks.is_first():
                print(f"$ python -m {' '.join((module, *arguments))}", flush=True)
            sys.argv = [module, *arguments]
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                if stop.code == NOT_EVALUATED and self.run is not None:
                    print(UNEVALUATED, file=sys.stderr, flush=True)
                elif stop.code not in (None, 0):
                    raise

    def attempt(self, failed: Callable[[str], None] = lambda reason: None) -> None:
        """`run_here`, where whatever is raised ends in a traceback, one line and the exit code AGAIN. A launcher
        that got the exception would take the job for done, or the sweep for over."""
        try:
            self.run_here()
        except Exception as error:  # noqa: BLE001  whatever it was
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            traceback.print_exc()
            print(f"error: {reason}", file=sys.stderr, flush=True)
            failed(reason)
            sys.exit(AGAIN)


def job_from(plain: dict[str, Any]) -> Job:
    """The inverse of `asdict`, after JSON has made lists of tuples."""
    return Job(plain["name"], tuple(tuple(command) for command in plain["commands"]), plain["run"])


class Attempts:
    """How often a job has begun at the same step. The file is there while the job may be tried again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def begin(self, name: str, step: int) -> str | None:
        """Notes one more; returns why there is to be no more, if so."""
        note = read_json(self.file) if self.file.exists() else {"step": -1}
        if note["step"] != step:
            note = {"step": step, "begun": 0, "reason": NO_ERROR_MESSAGE}
        if note["begun"] == TRIES:
            return f"{name} failed {TRIES} times at step {step} and is given up; the last time: {note['reason']}"
        write_whole(self.file, json.dumps(note | {"begun": note["begun"] + 1, "reason": NO_ERROR_MESSAGE}))
        return None

    def record_failure(self, reason: str) -> None:
        """Records why the current attempt failed."""
        write_whole(self.file, json.dumps(read_json(self.file) | {"reason": reason}))

    def end(self) -> None:
        """In good order: finished, stopped with everything saved, or given up."""
        self.file.unlink(missing_ok=True)


@dataclass
class InSlurm:
    """What submitit calls in each task of a SLURM job, and again in the same job after a requeue."""

    folder: str  # of this job's files; the batch script looks for the note of `Attempts` there

    def __call__(self, job: Job) -> None:
        safe_output.make_output_safe()
        ranks.adopt_slurm()
        if not ranks.is_first():
            self._follow(job)
            return
        attempts = self._attempts()
        given_up = attempts.begin(job.name, job.step())
        if given_up is not None:
            print(f"error: {given_up}", file=sys.stderr, flush=True)
            attempts.end()
            sys.exit(1)
        try:
            job.attempt(attempts.record_failure)
        except SystemExit as stop:
            if stop.code == 1:  # a mistake, said in one line
                attempts.end()
            raise
        attempts.end()

    def _follow(self, job: Job) -> None:
        """Ranks other than the first: after a signal they leave time to requeue, because the end of one task
        ends the others."""
        try:
            job.attempt()
        except SystemExit as stop:
            if isinstance(stop.code, int) and stop.code > 128:
                time.sleep(60)
            raise

    def _attempts(self) -> Attempts:
        return Attempts(Path(self.folder) / f"{os.environ['SLURM_JOB_ID']}.again")

    def checkpoint(self, job: Job) -> Any:
        """submitit asks after SIGUSR2, when the run is saved: the same again, in the same job."""
        from submitit.helpers import DelayedSubmission

        self._attempts().end()
        return DelayedSubmission(self, job)


@dataclass
class Entry:
    """A submission, as the book has it."""

    job: Job
    id: str  # SLURM's, `12` or `12_3`; or `local-...`
    log: str
    submitted: float = field(default_factory=time.time)
    state: str = ""  # of a local job: running, done or failed; SLURM is asked for its own
    gpu: str | None = None  # of a local job that has one to itself

    def is_running(self) -> bool:
        """Is this local job's process there, its launcher killed or not?"""
        if self.state != "running":
            return False
        try:
            with open(self.log, "r+b") as log:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def mark_running(log: BinaryIO) -> None:
    """Makes `Entry.is_running` true for as long as a process has this open file: the launcher, and each process that
    was given it as its stdout. The operating system takes the mark back when the last of them ends, however it ends."""
    fcntl.flock(log, fcntl.LOCK_SH)


class Book:
    """`jobs.jsonl`: a line per submission, and per change of a local one."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "jobs.jsonl"

    def add(self, entries: Iterable[Entry]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        append(self.file, map(asdict, entries))

    def entries(self) -> list[Entry]:
        """The last line of every submission, in the order of submission. UserError for a damaged line: its job
        would be submitted a second time."""
        last, damage = self.read()
        if damage:
            raise UserError(
                f"{damage}, so a job may be submitted that is not known of; see with squeue whether it is over, then "
                "delete that line"
            )
        return last

    def read(self) -> tuple[list[Entry], str]:
        """What can be read of `entries`, and the first line that cannot, in words ("" if there is none)."""
        last: dict[str, Entry] = {}
        first = ""
        for line in read_lines(self.file):
            entry = None if line.damage else _entry(line.value)
            if entry is not None:
                last[entry.id] = entry
            elif not first:
                first = f"line {line.number} of {self.file} {line.damage or 'is not a submission'}"
        return list(last.values()), first


def _entry(plain: dict[str, Any]) -> Entry | None:
    """The inverse of `asdict`; None for what is not one."""
    try:
        entry = Entry(**plain | {"job": job_from(plain["job"])})
    except (KeyError, TypeError):
        return None
    return entry if isinstance(entry.id, str) else None


def last_error(log: Path) -> str:
    """The last `error: ...` that a log holds, else its last line."""
    if not log.exists():
        return f"there is no {log}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else lines[-1] if lines else f"{log} is empty"


if __name__ == "__main__":  # a job of the local queue
    safe_output.make_output_safe()
    job_from(json.loads(sys.argv[1])).attempt()
