"""The lines that tell how far the jobs of a local queue are, while they run."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from urepa.cluster.slurm_job import Job
from urepa.core.json_lines import last_value
from urepa.runs.run_folder import RunFolder

EVERY, LATER = 60.0, 600.0  # seconds between two lines: in the first ten minutes, and from then on


class ProgressLines:
    """A line when a job starts, and now and then one on all that run. As a context manager: while they run.

    Args:
        every: seconds between two lines on all that run; None: `EVERY`, then `LATER`.
    """

    def __init__(self, every: float | None = None) -> None:
        self._every = every
        self._begun: dict[Job, float] = {}  # by `time.monotonic`
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> ProgressLines:
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self, job: Job) -> None:
        """Prints that the job starts."""
        with self._lock:
            self._begun[job] = time.monotonic()
        print(f"begun   {job.name}", flush=True)

    def end(self, job: Job) -> None:
        """It is no longer told of."""
        with self._lock:
            self._begun.pop(job, None)

    def line(self) -> str:
        """On all jobs that run; "" if none does."""
        with self._lock:
            begun = dict(self._begun)
        now = time.monotonic()
        each = [f"{job.name}: {step_text(job)}, {(now - since) / 60:.0f} min" for job, since in begun.items()]
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


def step_text(job: Job) -> str:
    """`step 200 of 600`, from the last row that its run has logged and its config; of other jobs that they run."""
    if job.run is None:
        return "at work"
    config = RunFolder(Path(job.run)).stored_config()
    step = last_value(Path(job.run) / "metrics.jsonl").get("step")
    if config is None or not isinstance(step, int):
        return "no step logged yet"
    end = config["trainer"]["max_steps"]
    return f"all {end} steps trained, not evaluated yet" if step == end else f"step {step} of {end}"
