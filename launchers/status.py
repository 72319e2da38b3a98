"""Where the jobs of a working folder are: `python -m launchers.status [outputs/.jobs]`.

A line per job that was submitted, its last submission alone: id, state, what it is, for a run its step and last loss,
and the log; for one that failed, why.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from urepa.doors import one_line_mistakes
from urepa.errors import UserError
from urepa.jobs import FOLDER, Book, Entry, last_error
from urepa.metrics import read_rows
from urepa.queues import active_jobs
from urepa.runs import RunFolder


def state_of(entry: Entry, folder: Path, active: dict[str, str]) -> str:
    """In SLURM's words while it is there; then done or failed."""
    if entry.state:
        return entry.state
    if entry.id in active:
        return active[entry.id].lower()
    return "done" if (folder / f"{entry.id}_0_result.pkl").exists() else "failed"


def progress(entry: Entry) -> str:
    """`step 200/600  total 0.431`, from the run's own files."""
    if entry.job.run is None:
        return ""
    rows = [row for row in read_rows(Path(entry.job.run) / "metrics.jsonl") if "train/total" in row]
    config = RunFolder(Path(entry.job.run)).stored_config()
    if not rows or config is None:
        return "not begun"
    return f"step {rows[-1]['step']}/{config['trainer']['max_steps']}  total {float(rows[-1]['train/total']):.4g}"


def lines(folder: Path) -> list[str]:
    """The table."""
    last = {entry.job.commands: entry for entry in Book(folder).entries()}
    if not last:
        raise UserError(f"no job was submitted from here: there is no {folder}/jobs.jsonl")
    active = active_jobs() if shutil.which("squeue") else {}
    table = []
    for entry in last.values():
        state = state_of(entry, folder, active)
        table.append(f"{entry.id:<12} {state:<22} {entry.job.name}")
        details = [progress(entry), last_error(Path(entry.log)) if state == "failed" else "", entry.log]
        table += [f"{'':<12} {detail}" for detail in details if detail]
    return table


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    with one_line_mistakes():
        print("\n".join(lines(Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER))))
