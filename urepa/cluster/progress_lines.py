"""Prints lines on the progress of a local queue's jobs while they run."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

from urepa.cluster.slurm_job import Job
from urepa.core.escaping import printable
from urepa.core.json_lines import last_value
from urepa.runs.run_folder import RunFolder

EVERY, LATER = 60.0, 600.0  # seconds between two lines: during the first ten minutes, and afterwards
LAST_BYTES, SHOWN = 4000, 80  # of a log, where its last line is; and characters of it that are shown


class ProgressLines:
    """Prints a line when a job starts, and a line on all running jobs at intervals. As a context manager, it prints
    while the block runs.

    Args:
        every: seconds between two lines on all running jobs; None: `EVERY`, then `LATER`.
    """

    def __init__(self, every: float | None = None) -> None:
        self._every = every
        self._begun: dict[Job, tuple[float, Path]] = {}  # by `time.monotonic`, and the log
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> ProgressLines:
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self, job: Job, log: Path) -> None:
        """Prints that the job starts, and adds it to the lines that follow. `log`: the file of what it prints."""
        with self._lock:
            self._begun[job] = (time.monotonic(), log)
        print(f"begun   {job.name}", flush=True)

    def end(self, job: Job) -> None:
        """Removes the job from the lines that follow."""
        with self._lock:
            self._begun.pop(job, None)

    def line(self) -> str:
        """One line on all running jobs; "" if none runs."""
        with self._lock:
            begun = dict(self._begun)
        now = time.monotonic()
        each = [f"{job.name}: {step_text(job, log)}, {(now - t) / 60:.0f} min" for job, (t, log) in begun.items()]
        return f"running {'; '.join(each)}" if each else ""

    def _tell(self) -> None:
        begin = time.monotonic()
        while not self._over.wait(self._seconds(time.monotonic() - begin)):
            if line := self.line():
                print(line, flush=True)

    def _seconds(self, passed: float) -> float:
        if self._every is not None:
            return self._every
        return EVERY if passed < LATER else LATER


def step_text(job: Job, log: Path) -> str:
    """`step 200 of 600`, from the config and the last logged row of the job's run; before its first row the last line
    of its log, such as the progress of making caches; for other jobs, that they run."""
    if job.run is None:
        return "at work"
    config = RunFolder(Path(job.run)).stored_config()
    step = last_value(Path(job.run) / "metrics.jsonl").get("step")
    if config is None or not isinstance(step, int):
        line = last_line(log)
        return f"no step logged yet ({line})" if line else "no step logged yet"
    end = config["trainer"]["max_steps"]
    return f"all {end} steps trained, not evaluated yet" if step == end else f"step {step} of {end}"


def last_line(log: Path) -> str:
    """The last line of a log, or of the progress bar at its end; "" without one besides the command."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]", text)]
    return printable(next((line for line in reversed(lines) if line and not line.startswith("$ ")), "")[:SHOWN])
