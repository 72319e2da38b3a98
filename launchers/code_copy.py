"""A copy of the checkout's commit from which jobs run, so that later edits of the checkout do not affect them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from urepa.core.code_version import CHECKOUT, without_git_variables
from urepa.core.errors import UserError

CODE = ("urepa", "launchers", "hydra_plugins", "conf")


def _git(*arguments: str, folder: Path = CHECKOUT) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=without_git_variables(),
            capture_output=True,
            text=True,
            timeout=600,
        )
    except OSError as error:
        raise UserError(f"jobs run from a copy of the commit, and git cannot be started ({error})") from error
    if done.returncode != 0:
        raise UserError(
            f"jobs run from a copy of the commit, and {folder} is not a usable git checkout: {done.stderr.strip()}"
        )
    return done.stdout


def commit_folder(below: Path) -> Path:
    """The folder for the copy of this commit, whether or not it exists."""
    return (below / _git("rev-parse", "HEAD").strip()[:12]).absolute()


def copy_to(place: Path) -> None:
    """Makes a clone without history, atomically. Raises UserError if the checkout has uncommitted changes in the
    code."""
    changed = [line[3:] for line in _git("status", "--porcelain", "--", *CODE).splitlines()]
    if changed:
        some = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise UserError(f"jobs run from a copy of the commit, and {some} is not committed: commit or stash it")
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        _git("clone", "--quiet", "--depth=1", f"file://{CHECKOUT}", str(temporary))
        if _git("rev-parse", "HEAD", folder=temporary)[:12] != place.name:
            raise UserError("the checkout has moved to another commit in between; give the command again")
        os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
