"""A whole study on a real SLURM, from a separate checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from cluster import Cluster, seldom
from workspace import Workspace, environment, wait_for

from urepa.cluster.slurm_job import Book

ROOT = Path(__file__).parents[2]
CODE = ("urepa", "launchers", "hydra_plugins", "conf")


def checkout(folder: Path) -> Path:
    """The code of this checkout, committed in a separate repository."""
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=all")):
        identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return folder


class Study:
    """`python -m launchers.ablation_grid` in a workspace, run from a checkout."""

    def __init__(self, work: Workspace, code: Path, cluster: Cluster | None) -> None:
        self.work, self.code, self.cluster = work, code, cluster
        self.own: tuple[str, ...] = ()  # of the first submission

    def launch(self, *own: str, module: str = "launchers.ablation_grid", code: int = 0) -> str:
        """Runs the command and returns its output."""
        more = {} if self.cluster is None else self.cluster.environment
        done = subprocess.run(
            [sys.executable, "-m", module, *own],
            cwd=self.work.folder,
            env=environment() | more | {"PYTHONPATH": str(self.code)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        self.own = self.own or own
        return done.stdout if code == 0 else done.stderr

    def restore(self) -> None:
        """Restores the code as it was committed."""
        subprocess.run(["git", "checkout", "--quiet", "."], cwd=self.code, check=True)

    def wait(self) -> None:
        """Waits until SLURM has no more jobs."""
        cluster = self.cluster
        assert cluster is not None
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
        mine = self.ids()

        def ended() -> bool:
            jobs = cluster.jobs()
            return {jobs[job]["state"] for job in mine} <= over

        wait_for(seldom(ended), None, "the study's end")

    def ids(self) -> list[str]:
        """All jobs that were ever submitted."""
        return [entry.id for entry in Book(self.work.folder / "outputs/.jobs").entries()]
