"""Shows the jobs of a working folder: `python -m launchers.status [outputs/.jobs] [--config-dir FOLDER]`.

A line per job describes its last submission: id, state, what it does, for a run its step and last loss, the log and, if
it failed, the reason.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from urepa.cluster.slurm_and_local import active_jobs
from urepa.cluster.slurm_job import FOLDER, Book, Entry, last_error
from urepa.config.command_schemas import Status
from urepa.config.help import HELP, help_text
from urepa.config.own_package import take_folder
from urepa.core import safe_output
from urepa.core.errors import UserError
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.metrics import Rows, number
from urepa.runs.run_folder import RunFolder


def is_in_slurm(entry: Entry) -> bool:
    """Whether the job was submitted to SLURM. Its state is then not in the book."""
    return not entry.state


def state_of(entry: Entry, folder: Path, active: dict[str, str]) -> str:
    """The state in SLURM's words while SLURM lists the job; afterwards done or failed."""
    if entry.state == "running" and not entry.is_running():  # its launcher was killed, and the job has ended
        return "done" if entry.job.run is not None and entry.job.is_finished() else "failed"
    if not is_in_slurm(entry):
        return entry.state
    if entry.id in active:
        return active[entry.id].lower()
    return "done" if (folder / f"{entry.id}_0_result.pkl").exists() else "failed"


def progress(entry: Entry) -> str:
    """`step 200/600  total 0.431`, from the run's own files."""
    if entry.job.run is None:
        return ""
    rows = Rows(Path(entry.job.run) / "metrics.jsonl")
    last = None
    for row in rows:
        last = row if "train/total" in row else last
    config = RunFolder(Path(entry.job.run)).stored_config()
    damage = f"  (damaged: {rows.damage()})" if rows.damage() else ""
    if last is None or config is None:
        return f"not begun{damage}"
    return f"step {last['step']}/{config['trainer']['max_steps']}  total {number(last['train/total']):.4g}{damage}"


def lines(folder: Path) -> list[str]:
    """The lines of the table."""
    entries, damage = Book(folder).read()
    last = {entry.job.identity: entry for entry in entries}
    if not last and not damage:
        raise UserError(f"no job was submitted from here: there is no {folder}/jobs.jsonl; give the FOLDER that has it")
    # local jobs are also listed if SLURM is missing or does not answer
    active = active_jobs() if any(is_in_slurm(entry) for entry in last.values()) else {}
    table = [f"damaged: {damage}"] if damage else []
    for entry in last.values():
        state = state_of(entry, folder, active)
        table.append(f"{entry.id:<12} {state:<22} {entry.job.name}")
        details = [progress(entry), last_error(Path(entry.log)) if state == "failed" else "", entry.log]
        table += [f"{'':<12} {detail}" for detail in details if detail]
    return table


if __name__ == "__main__":
    safe_output.make_output_safe()
    if HELP & set(sys.argv):
        print(help_text("status", OmegaConf.structured(Status)))
        sys.exit(0)
    with one_line_mistakes():
        _, given = take_folder(sys.argv[1:])
        if len(given) > 1 or any("=" in argument for argument in given):
            raise UserError(
                "launchers.status takes one folder of jobs, and nothing else: python -m launchers.status [FOLDER]"
            )
        print("\n".join(lines(Path(given[0] if given else FOLDER))))
