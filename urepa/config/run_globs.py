"""`run=glob(PATTERN)`: the folders of several runs for a command that takes one run; with -m, one after another."""

from __future__ import annotations

import re
from glob import glob
from pathlib import Path

from urepa.config.commands import COMMANDS
from urepa.core.declared_keys import keys_of
from urepa.core.errors import UserError


def expand_run_globs(arguments: list[str], root: str, sweeps: bool) -> list[str]:
    """Replaces `run=glob(PATTERN)` by `run='FOLDER','FOLDER',...`, over which Hydra sweeps. Hydra's own glob matches
    options of a group, not folders.

    Args:
        root: the command's root in conf/. Only commands that take a run are affected.
        sweeps: whether -m is among the arguments. A pattern without -m, or one that matches no run, is a UserError.
    """
    if not any(key.name == "run" for key in keys_of(COMMANDS[root].schema)):
        return arguments
    expanded = []
    for argument in arguments:
        found = re.fullmatch(r"run=glob\((.*)\)", argument)
        if found is not None and not sweeps:
            raise UserError(f"{argument} is several runs: add -m to do one after the other")
        expanded.append(argument if found is None else f"run={','.join(map(_quote, matching_runs(found[1])))}")
    return expanded


def matching_runs(pattern: str) -> list[str]:
    """The folders of runs that match a shell pattern, seed2 before seed10. Raises UserError if there is none."""
    unquoted = pattern.strip("'\"")
    folders = [folder for folder in glob(unquoted, recursive=True) if Path(folder).is_dir()]
    runs = [folder for folder in folders if (Path(folder) / "config.yaml").is_file()]
    if not runs:
        others = f"; of {len(folders)} that match none has a config.yaml" if folders else ""
        raise UserError(
            f"run=glob({pattern}) matches no run's folder{others}; give a pattern that does, as outputs/*/seed*"
        )
    return sorted(runs, key=_natural_sort_key)


def _natural_sort_key(name: str) -> list[str | int]:
    """Splits a name into text and numbers, so that seed2 sorts before seed10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _quote(value: str) -> str:
    """Quotes any string for Hydra's grammar."""
    return "'" + value.replace("'", "\\'") + "'"
