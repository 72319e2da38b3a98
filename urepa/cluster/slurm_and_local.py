"""Queues that run jobs: a SLURM cluster, through submitit, or this machine's GPUs, a few jobs at a time.

Two parts of submitit are not used. Its monitoring calls sacct, which a cluster may lack; here squeue is asked. Its
local executor starts all jobs at once on the first GPUs; here each local job gets a free GPU and is retried.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from urepa.cluster.progress_lines import ProgressLines
from urepa.cluster.slurm_job import (
    AGAIN,
    NO_ERROR_MESSAGE,
    TRIES,
    UNEVALUATED,
    Book,
    Entry,
    InSlurm,
    Job,
    last_error,
    mark_running,
)
from urepa.core.errors import QueueGone, UserError

POLL_SECONDS = 2.0
MISSED = 3  # a job without a result is over once SLURM does not list it in so many polls in a row
NOT_SBATCH = ("_target_", "submitit_folder", "gpus", "max_num_timeout")  # not passed to sbatch


@dataclass
class Outcome:
    """The end of a job."""

    entry: Entry
    error: str | None  # one line; None: the job finished


def print_outcome(outcome: Outcome) -> bool:
    """Prints how a job ended. Returns whether it finished."""
    name = outcome.entry.job.name
    if outcome.error is None:
        log = Path(outcome.entry.log)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        more = f" ({UNEVALUATED})\n        {last_error(log)}\n        {log}" if UNEVALUATED in lines else ""
        print(f"done    {name}{more}", flush=True)
        return True
    print(f"FAILED  {name}: {outcome.error}\n        {outcome.entry.log}", flush=True)
    return False


# --- SLURM ------------------------------------------------------------------------------------------------


class SlurmQueue:
    """Submits jobs with the settings of `conf/hydra/launcher/slurm_h200.yaml`.

    `code`: the checkout from which the jobs import urepa; None: the installed package."""

    def __init__(self, settings: dict[str, Any], code: Path | None = None) -> None:
        self.settings = settings
        self.folder = Path(settings["submitit_folder"]).absolute()
        self.code = code
        if not 1 <= settings["gpus"] <= 8:
            raise UserError(f"gpus={settings['gpus']}: a run takes 1 to 8 GPUs of a node")

    def script(self, jobs: Sequence[Job], gpus: int, label: str, nodes: int = 1) -> str:
        """The batch script of these jobs, each with `gpus` of each of its `nodes`; several jobs become one array."""
        executor = self._executor(gpus, nodes, label, None)._executor
        if len(jobs) > 1:
            executor.parameters["map_count"] = len(jobs)
        return str(executor._make_submission_file_text(executor._submitit_command_str, ""))

    def submit(
        self, jobs: Sequence[Job], gpus: int, label: str, dependency: str | None = None, nodes: int = 1
    ) -> list[Entry]:
        """Submits the jobs, each with `gpus` of each of its `nodes`, several as one array, and records them in the
        book."""
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError

        executor = self._executor(gpus, nodes, label, dependency)
        self.folder.mkdir(parents=True, exist_ok=True)
        task = InSlurm(str(self.folder))
        try:
            with _environment(own_environment()):
                done = executor.map_array(task, jobs) if len(jobs) > 1 else [executor.submit(task, jobs[0])]
        except (UncompletedJobError, FailedSubmissionError) as error:
            raise QueueGone(f"sbatch does not take these jobs: {' '.join(str(error).split())}") from error
        entries = [Entry(job, d.job_id, str(d.task(0).paths.stderr)) for job, d in zip(jobs, done, strict=True)]
        Book(self.folder).add(entries)
        return entries

    def find_queued(self, jobs: Sequence[Job]) -> list[Entry]:
        """The submissions of exactly these jobs by an earlier call that are still in SLURM's queue."""
        last = {entry.job.commands: entry for entry in Book(self.folder).entries()}
        known = [last[job.commands] for job in jobs if job.commands in last]
        if not known or shutil.which("squeue") is None:
            return []
        active = active_jobs()
        return [entry for entry in known if entry.id in active]

    def wait(self, entries: Sequence[Entry]) -> Iterator[Outcome]:
        """Yields the outcome of each job as it ends. Only squeue is asked, because a cluster may have no accounting."""
        missed = {entry.id: 0 for entry in entries}
        waiting = list(entries)
        while waiting:
            known = active_jobs()
            for entry in list(waiting):
                outcome = self.outcome(entry)
                missed[entry.id] = 0 if entry.id in known else missed[entry.id] + 1
                if outcome.error is None or missed[entry.id] == MISSED:
                    waiting.remove(entry)
                    yield outcome
            if waiting:
                time.sleep(POLL_SECONDS)

    def outcome(self, entry: Entry) -> Outcome:
        """The outcome of a job that has ended. A finished job has a result file of submitit."""
        done = (self.folder / f"{entry.id}_0_result.pkl").exists()
        return Outcome(entry, None if done else last_error(Path(entry.log)))

    def _executor(self, gpus: int, nodes: int, label: str, dependency: str | None) -> Any:
        from submitit import AutoExecutor

        if shutil.which("srun") is None:
            raise QueueGone("there is no srun here: submit from a machine that belongs to a SLURM cluster")
        executor = AutoExecutor(self.folder, cluster="slurm", slurm_max_num_timeout=self.settings["max_num_timeout"])
        own = {k: v for k, v in self.settings.items() if k not in NOT_SBATCH and v is not None}
        own |= {"nodes": nodes, "tasks_per_node": max(gpus, 1), "setup": [*self.settings["setup"], *self._setup()]}
        own |= {"srun_args": ["--kill-on-bad-exit=1"], "teardown": self._teardown(), "name": f"{own['name']}:{label}"}
        if gpus == 0:
            own.pop("gres", None)
        elif "gres" in own:
            own["gres"] = f"{own['gres'].rpartition(':')[0]}:{gpus}"
        if dependency is not None:
            own["dependency"] = dependency
        shared = {field.name for field in fields(BaseQueueConf)}  # fields that all of submitit's executors have
        executor.update_parameters(**{k if k in shared else f"slurm_{k}": v for k, v in own.items()})
        return executor

    def _setup(self) -> list[str]:
        """Sets PYTHONSAFEPATH, because otherwise the working folder would come before the copy of the code."""
        if self.code is None:
            return []
        return [f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(_import_path(self.code))}"]

    def _teardown(self) -> list[str]:
        """Requeues a job whose task failed and left its note, so that it resumes. The id is the one that SLURM shows:
        the last task of an array has the array's number, and requeueing that number would requeue all of its tasks."""
        return [
            "code=$?",
            "shown=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
            f'if [ $code -ne 0 ] && [ -e {shlex.quote(str(self.folder))}/"$SLURM_JOB_ID".again ]; then',
            '  scontrol requeue "${shown:-$SLURM_JOB_ID}"',
            "fi",
            "exit $code",
        ]


def _import_path(code: Path) -> str:
    """PYTHONPATH of a job that runs a copy of the code: that copy, then the folders of the user's own packages."""
    own = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return os.pathsep.join([str(code), *own])


def active_jobs() -> dict[str, str]:
    """The states of this user's jobs that SLURM still lists, by the id that it shows. Raises UserError if SLURM is
    missing or does not answer."""
    if shutil.which("squeue") is None:
        raise QueueGone("there is no squeue here: ask on a machine that belongs to the SLURM cluster of these jobs")
    user = str(os.getuid())
    done = subprocess.run(
        ["squeue", "-h", "-r", "-u", user, "-o", "%i|%T|%r"], capture_output=True, text=True, timeout=120
    )
    if done.returncode != 0:
        raise QueueGone(f"squeue does not answer: {done.stderr.strip()}")
    rows = (line.split("|") for line in done.stdout.splitlines())
    return {job: state if reason in ("None", "") else f"{state} ({reason})" for job, state, reason in rows}


def own_environment() -> dict[str, str]:
    """The environment that jobs inherit: the user's variables, without those that `urepa.cli` has set for itself."""
    from urepa.core.one_line_errors import TRACEBACKS

    ours = () if TRACEBACKS else ("HYDRA_FULL_ERROR",)
    return {key: value for key, value in os.environ.items() if key not in ours}


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Sets the environment of this process for the duration of the block, because submitit starts sbatch in it."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


# --- this machine -----------------------------------------------------------------------------------------


class LocalQueue:
    """Runs jobs on this machine, `at_once` at a time, each with a GPU of its own if there are any.

    `at_once`: None means one per GPU, or one without GPUs. `gpus`: the GPUs to use; None means all, [] none."""

    def __init__(self, at_once: int | None, gpus: Sequence[int] | None, folder: str, code: Path | None = None) -> None:
        self.gpus = _all_gpus() if gpus is None else [str(g) for g in gpus]
        self.at_once = max(len(self.gpus), 1) if at_once is None else at_once
        if self.at_once < 1 or (self.gpus and self.at_once > len(self.gpus)):
            raise UserError(f"at_once={self.at_once}: give 1 to {len(self.gpus) or 'any number'}, a GPU for each run")
        self.folder, self.code = Path(folder).absolute(), code
        self.running: set[subprocess.Popen[bytes]] = set()
        self.leaving = False
        self._numbers = itertools.count()  # job numbers: the queue may run several times within one second

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Runs the jobs and yields the outcome of each as it ends. Ctrl-C and SIGTERM are passed on to the running
        jobs, which save and end."""
        stamp = f"local-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.leaving = False  # may be set by an earlier stage
        self.folder.mkdir(parents=True, exist_ok=True)
        ids = [f"{stamp}_{next(self._numbers)}" for _ in jobs]
        entries = [Entry(job, own, str(self.folder / f"{own}.log")) for job, own in zip(jobs, ids, strict=True)]
        earlier = {entry.id: self._find_running(entry) for entry in entries}
        entries.sort(key=lambda entry: earlier[entry.id] is None)  # jobs that already run get their slots first
        slots = self._slots([earlier[entry.id] for entry in entries[: self.at_once]])
        free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with _sigterm_as_interrupt(), ProgressLines() as told, ThreadPoolExecutor(self.at_once) as pool:
            try:
                futures = [
                    pool.submit(self._run_entry, entry, free, slots[i : i + 1], told) for i, entry in enumerate(entries)
                ]
                for future in as_completed(futures):
                    yield future.result()
            finally:
                self.leaving = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self.running):
                    process.terminate()

    def _find_running(self, entry: Entry) -> Entry | None:
        """The entry of the same job if another launcher started it and its process still runs."""
        others = (e for e in Book(self.folder).read()[0] if e.id != entry.id and e.job.identity == entry.job.identity)
        return next((e for e in others if e.is_running()), None)

    def _slots(self, earlier: Sequence[Entry | None]) -> list[str | None]:
        """A GPU for each of the first jobs. A job that already runs keeps its GPU."""
        left = list(self.gpus)
        own = [left.pop(left.index(e.gpu)) if e is not None and e.gpu in left else None for e in earlier]
        return [left.pop(0) if gpu is None and left else gpu for gpu in own]

    def _run_entry(
        self,
        entry: Entry,
        free: queue.SimpleQueue[str | None],
        slot: Sequence[str | None],
        told: ProgressLines,
    ) -> Outcome:
        gpu = slot[0] if slot else free.get()
        entry = replace(entry, gpu=gpu)
        book = Book(self.folder)
        try:
            self._wait_for_earlier(entry)
            if self.leaving:
                return Outcome(entry, "it was not begun")
            with open(entry.log, "ab+") as log:
                mark_running(log)
                book.add([replace(entry, state="running")])
                told.begin(entry.job, Path(entry.log))
                error = self._run_with_retries(entry, gpu, log)
        finally:
            told.end(entry.job)
            free.put(gpu)
        book.add([replace(entry, state="done" if error is None else "failed")])
        return Outcome(entry, error)

    def _wait_for_earlier(self, entry: Entry) -> None:
        """Waits until the process that another launcher started for the same job ends. It takes a slot of `at_once`."""
        said = ""
        while not self.leaving and (earlier := self._find_running(entry)) is not None:
            if earlier.id != said:
                said = earlier.id
                print(
                    f"waiting for {entry.job.name}: the process of an earlier start still runs; its log: {earlier.log}",
                    flush=True,
                )
            time.sleep(POLL_SECONDS)

    def _run_with_retries(self, entry: Entry, gpu: str | None, log: BinaryIO) -> str | None:
        """Runs a job, and again as long as it makes progress. Returns None, or the reason why it did not finish."""
        begun, step = 0, -1
        while True:
            before = entry.job.step()
            begun, step = (begun + 1 if before == step else 1), before
            code = self._run_process(entry, gpu, log)
            if code == 0:
                return None
            if self.leaving or code in (1, *(128 + s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2))):
                return last_error(Path(entry.log))
            if begun == TRIES and entry.job.step() == step:
                reason = last_error(Path(entry.log)) if code == AGAIN else NO_ERROR_MESSAGE
                return f"{entry.job.name} failed {TRIES} times at step {step} and is given up; the last time: {reason}"

    def _run_process(self, entry: Entry, gpu: str | None, log: BinaryIO) -> int:
        environment = own_environment() | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        if self.code is not None:
            environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": _import_path(self.code)}
        command = [sys.executable, "-m", "urepa.cluster.slurm_job", json.dumps(asdict(entry.job))]
        # in a session of its own, so that only this process passes Ctrl-C on
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.running.add(process)
        if self.leaving:  # set after the running jobs were told to end
            process.terminate()
        try:
            return process.wait()
        finally:
            self.running.discard(process)


def _all_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
