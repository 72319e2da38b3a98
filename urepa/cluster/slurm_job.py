"""A job: one or more urepa commands that run on some machine, and the book in which every submission is recorded.

A job that fails is tried again from its last checkpoint. After three failures at the same step it is given up.

submitit requeues a job after a signal. It does not retry a job that raised or was killed, even if its step still
advances; this module does.
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
from urepa.runs.summary import is_finished, read_summary

FOLDER = "outputs/.jobs"  # scripts, logs and notes of all jobs, below the working folder
TRIES = 3  # attempts at the same step
AGAIN = 75  # exit code of a job that raised and may be tried again; 1 is for errors that repeat
UNEVALUATED = "the run is finished, but an evaluation at its end failed; urepa.evaluate does it again"
NO_ERROR_MESSAGE = "it ended without an error message: killed, out of memory, or its node was lost"


@dataclass(frozen=True)
class Job:
    """Commands to run one after another, each a module and its arguments, as for `python -m`."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    run: str | None = None  # the folder of the trained run, whose last checkpoint gives the progress

    @property
    def identity(self) -> str | tuple[tuple[str, ...], ...]:
        """Equal for two jobs that do the same work: the run's folder, or the commands."""
        return self.commands if self.run is None else self.run

    def step(self) -> int:
        """The step that its run has reached."""
        if self.run is None:
            return 0
        found = (p.name.removeprefix("step_") for p in Path(self.run).glob("checkpoints/step_*"))
        return max((int(n) for n in found if n.isdigit()), default=0)

    def is_finished(self) -> bool:
        """Whether its run has reached the end that its config names."""
        assert self.run is not None
        summary, config = read_summary(Path(self.run)), RunFolder(Path(self.run)).stored_config()
        return config is not None and is_finished(summary, config["trainer"]["max_steps"])

    def run_here(self) -> None:
        """Runs the commands in this process. A command that exits with a code other than 0 ends the job with that code.
        If training has finished and only an evaluation failed, the job counts as finished, because dependent jobs need
        only the training; a message says that the evaluation failed."""
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
        """Like `run_here`, but any exception ends in a traceback, one line and the exit code AGAIN. If the exception
        reached the launcher, the launcher would take the job as done, or the sweep as over."""
        try:
            self.run_here()
        except Exception as error:  # noqa: BLE001  any exception may be retried
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            traceback.print_exc()
            print(f"error: {reason}", file=sys.stderr, flush=True)
            failed(reason)
            sys.exit(AGAIN)


def job_from(plain: dict[str, Any]) -> Job:
    """The inverse of `asdict`, for data in which JSON has turned tuples into lists."""
    return Job(plain["name"], tuple(tuple(command) for command in plain["commands"]), plain["run"])


class Attempts:
    """Counts how often a job has begun at the same step. The file exists while the job may be tried again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def begin(self, name: str, step: int) -> str | None:
        """Records one more attempt. Returns the reason if there must be no more attempts, else None."""
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
        """Removes the note, after the job has finished, stopped with everything saved, or been given up."""
        self.file.unlink(missing_ok=True)


@dataclass
class InSlurm:
    """The object that submitit calls in each task of a SLURM job, and again in the same job after a requeue."""

    folder: str  # this job's folder, where the batch script looks for the note of `Attempts`

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
            if stop.code == 1:  # an error that was reported in one line
                attempts.end()
            raise
        attempts.end()

    def _follow(self, job: Job) -> None:
        """Runs a rank other than the first. After a signal it waits, so that the first rank has time to requeue: the
        end of one task ends the others."""
        try:
            job.attempt()
        except SystemExit as stop:
            if isinstance(stop.code, int) and stop.code > 128:
                time.sleep(60)
            raise

    def _attempts(self) -> Attempts:
        return Attempts(Path(self.folder) / f"{os.environ['SLURM_JOB_ID']}.again")

    def checkpoint(self, job: Job) -> Any:
        """Called by submitit after SIGUSR2, once the run is saved. Submits the same object again, in the same job."""
        from submitit.helpers import DelayedSubmission

        self._attempts().end()
        return DelayedSubmission(self, job)


@dataclass
class Entry:
    """A submission, as recorded in the book."""

    job: Job
    id: str  # SLURM's id, `12` or `12_3`; or `local-...`
    log: str
    submitted: float = field(default_factory=time.time)
    state: str = ""  # for local jobs: running, done or failed; for SLURM's jobs, SLURM is asked
    gpu: str | None = None  # of a local job that has a GPU of its own

    def is_running(self) -> bool:
        """Whether the process of this local job still runs, even if its launcher was killed."""
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
    """Makes `Entry.is_running` true while any process has this file open: the launcher, and each process that has it as
    its stdout. The operating system releases the lock when the last of them ends, however it ends."""
    fcntl.flock(log, fcntl.LOCK_SH)


class Book:
    """The book, `jobs.jsonl`: a line per submission, and per change of a local one."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "jobs.jsonl"

    def add(self, entries: Iterable[Entry]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        append(self.file, map(asdict, entries))

    def entries(self) -> list[Entry]:
        """The last line of every submission, in the order of submission. Raises UserError for a damaged line, because
        its job could be submitted a second time."""
        last, damage = self.read()
        if damage:
            raise UserError(
                f"{damage}, so a submitted job may be missing here; check with squeue that it has ended, then "
                "delete that line"
            )
        return last

    def read(self) -> tuple[list[Entry], str]:
        """The readable entries, and a description of the first unreadable line ("" if there is none)."""
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
    """The inverse of `asdict`; None for data that is not an entry."""
    try:
        entry = Entry(**plain | {"job": job_from(plain["job"])})
    except (KeyError, TypeError):
        return None
    return entry if isinstance(entry.id, str) else None


def last_error(log: Path) -> str:
    """The last `error: ...` in a log, else its last line."""
    if not log.exists():
        return f"there is no {log}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else lines[-1] if lines else f"{log} is empty"


if __name__ == "__main__":  # the entry point of a local job
    safe_output.make_output_safe()
    job_from(json.loads(sys.argv[1])).attempt()
