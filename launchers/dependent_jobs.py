"""Submits a study's stages to SLURM with dependencies, or runs them on this machine. Finished jobs are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchers.study import JobGroup
from urepa.cluster.slurm_and_local import LocalQueue, SlurmQueue, active_jobs, print_outcome
from urepa.cluster.slurm_job import Book, Entry, Job
from urepa.core.errors import UserError
from urepa.core.files import write_whole

WIDEST = 160  # characters of a command shown in a dry run


class SlurmChain:
    """Submits all jobs at once; SLURM keeps their order."""

    def __init__(self, settings: dict[str, Any], code: Path) -> None:
        self.queue = SlurmQueue(settings, code)
        self.known: dict[tuple[tuple[str, ...], ...], Entry] = {}
        self.coming: dict[Job, str] = {}  # ids of submitted jobs that have not ended

    def submit(self, stages: Sequence[JobGroup]) -> None:
        active = active_jobs()
        self.known = {entry.job.commands: entry for entry in Book(self.queue.folder).entries()}
        for stage in stages:
            queued = [job for job in stage.jobs if (e := self.known.get(job.commands)) and e.id in active]
            self.coming |= {job: self.known[job.commands].id for job in queued}
            todo = [job for job in stage.jobs if job not in self.coming and not self._is_done(stage, job)]
            done = len(stage.jobs) - len(queued) - len(todo)
            for jobs, dependency in self._group_by_dependency(stage, todo):
                entries = self.queue.submit(jobs, stage.gpus, stage.name, dependency, stage.nodes)
                self.coming |= {entry.job: entry.id for entry in entries}
                _print_submission(stage, jobs, entries, dependency)
            if queued or done:
                print(f"{stage.name:<11} {done} are done, {len(queued)} are in the queue already")
        print(f"logs and notes: {self.queue.folder}; python -m launchers.status shows where they are")

    def show(self, stages: Sequence[JobGroup], scripts: Path | None) -> None:
        """Prints what `submit` would submit if no job were done. Writes all of it to the folder `scripts` if given."""
        for number, stage in enumerate(stages):
            _print_stage(stage, number, _dependency_text(stage, {id(s): n for n, s in enumerate(stages)}), scripts)
            if scripts is not None:
                script = self.queue.script(stage.jobs, stage.gpus, stage.name, stage.nodes)
                write_whole(scripts / f"{number}_{stage.name}.sh", script)

    def _is_done(self, stage: JobGroup, job: Job) -> bool:
        """Whether a job is done. A run's own files show it; another job is done if its last submission is and it does
        not depend on new jobs."""
        if job.run is not None:
            return job.is_finished()
        before = [job_before for s in _earlier_stages(stage) for job_before in s.jobs]
        if stage.each and stage.after is not None:
            before = [stage.after.jobs[stage.jobs.index(job)]]
        entry = self.known.get(job.commands)
        return (
            entry is not None and self.queue.outcome(entry).error is None and not any(b in self.coming for b in before)
        )

    def _group_by_dependency(self, stage: JobGroup, todo: list[Job]) -> list[tuple[list[Job], str | None]]:
        """Groups the jobs by the jobs on which they depend."""
        if not todo:
            return []
        if stage.each and stage.after is not None:
            pairs = [(job, self.coming.get(stage.after.jobs[stage.jobs.index(job)])) for job in todo]
            ready = [job for job, before in pairs if before is None]
            later = [(job, before) for job, before in pairs if before is not None]
            groups: list[tuple[list[Job], str | None]] = [(ready, None)] if ready else []
            array = later[0][1].partition("_")[0] if later else ""
            if len(later) > 1 and [before for _, before in later] == [f"{array}_{i}" for i in range(len(later))]:
                return [*groups, ([job for job, _ in later], f"aftercorr:{array}")]
            return [*groups, *(([job], f"afterok:{before}") for job, before in later)]
        kind = "afterany" if stage.after_any else "afterok"
        ids = {self.coming[job] for s in _earlier_stages(stage) for job in s.jobs if job in self.coming}
        return [(todo, f"{kind}:{':'.join(sorted(ids))}" if ids else None)]


class LocalChain:
    """Runs the stages on this machine one after another, a few jobs at a time."""

    def __init__(self, settings: dict[str, Any], code: Path) -> None:
        self.queue = LocalQueue(settings["at_once"], settings["gpus"], settings["folder"], code)

    def submit(self, stages: Sequence[JobGroup]) -> None:
        known = {entry.job.commands: entry for entry in Book(self.queue.folder).entries()}
        begun: set[Job] = set()
        failed: set[Job] = set()
        for stage in stages:
            waits_for = {job: self._required_jobs(stage, job) for job in stage.jobs}
            blocked = [job for job in stage.jobs if failed & set(waits_for[job])]
            failed |= set(blocked)
            todo = []
            for job in stage.jobs:
                entry = known.get(job.commands)
                done = job.is_finished() if job.run is not None else entry is not None and entry.state == "done"
                if job not in blocked and (not done or begun & {*waits_for[job], *_optional_jobs(stage)}):
                    todo.append(job)
            left_out = f", {len(blocked)} cannot begin" if blocked else ""
            over = len(stage.jobs) - len(todo) - len(blocked)
            print(f"{stage.name:<11} {len(todo)} to do, {over} done{left_out}", flush=True)
            begun |= set(todo)
            failed |= {outcome.entry.job for outcome in self.queue.run(todo) if not print_outcome(outcome)}
        if failed:
            names = ", ".join(sorted(job.name for job in failed))
            raise UserError(f"{len(failed)} jobs did not finish ({names}); the same command goes on with them")

    def show(self, stages: Sequence[JobGroup], scripts: Path | None) -> None:
        for number, stage in enumerate(stages):
            _print_stage(stage, number, f", {self.queue.at_once} at a time", scripts)

    def _required_jobs(self, stage: JobGroup, job: Job) -> list[Job]:
        if stage.after is None:
            return []
        return [stage.after.jobs[stage.jobs.index(job)]] if stage.each else stage.after.jobs


def _optional_jobs(stage: JobGroup) -> list[Job]:
    return [job for s in stage.after_any for job in s.jobs]


def _earlier_stages(stage: JobGroup) -> list[JobGroup]:
    return [*([stage.after] if stage.after is not None else []), *stage.after_any]


def _dependency_text(stage: JobGroup, number: dict[int, int]) -> str:
    numbers = ", ".join(str(number[id(s)]) for s in _earlier_stages(stage))
    if not numbers:
        return ""
    how = "each after its own of" if stage.each else "whatever becomes of" if stage.after_any else "after"
    return f", {how} {numbers}"


def _print_stage(stage: JobGroup, number: int, how: str, scripts: Path | None) -> None:
    """Prints the first job of a stage; with `scripts`, writes all of them to a file."""
    print(f"{number}: {stage.name}, {len(stage.jobs)} {'job' if len(stage.jobs) == 1 else 'jobs'}{how}")
    lines = [[f"python -m {' '.join(command)}" for command in job.commands] for job in stage.jobs]
    print("".join(f"      {_shorten(line)}\n" for line in lines[0]), end="")
    if scripts is not None:
        scripts.mkdir(parents=True, exist_ok=True)
        write_whole(scripts / f"{number}_{stage.name}.txt", "".join(f"{line}\n" for job in lines for line in job))


def _shorten(line: str) -> str:
    return line if len(line) <= WIDEST else f"{line[:WIDEST]} ..."


def _print_submission(stage: JobGroup, jobs: Sequence[Job], entries: Sequence[Entry], dependency: str | None) -> None:
    ids = entries[0].id if len(entries) == 1 else f"{entries[0].id} to {entries[-1].id}"
    print(f"{stage.name:<11} {len(jobs)} submitted as {ids}{f', {dependency}' if dependency else ''}", flush=True)
