"""Composes all runs of a sweep from the state of conf/ at the sweep's start, even if files are edited meanwhile.

Hydra composes a run when the run begins. With a launcher that is in another process and possibly hours later. So a
sweep composes from a copy of conf/, in a folder that is named by a hash of its content.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from urepa.cluster.slurm_job import FOLDER
from urepa.config.command_line import is_sweep
from urepa.config.conf_options import CONF
from urepa.config.own_package import given_folders
from urepa.core.files import sync_folder

PLACE = Path(FOLDER) / "conf"  # below the working folder
FLAG = "--config-path"  # Hydra's option


def with_conf_copy(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps a Hydra main so that a sweep is composed from a copy of conf/ and of the folder given by --config-dir."""

    @functools.wraps(main)
    def command() -> None:
        if is_sweep(sys.argv[1:]) or "hydra.mode=MULTIRUN" in sys.argv:
            given = given_folders(sys.argv[1:])
            instead = any(argument.startswith((FLAG, "-cp")) for argument in sys.argv[1:])
            sys.argv += [FLAG, str(copy_configs(given if instead else [Path(CONF), *given]))]
        main()

    return command


def copy_configs(folders: Sequence[Path]) -> Path:
    """Copies the configs of all folders into one, atomically. If two files have the same name, the first folder's is
    used."""
    files = {name: content for folder in reversed(folders) for name, content in _read_configs(folder).items()}
    if not files:
        return folders[0]  # Hydra reports the error in it
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    place = (PLACE / digest.hexdigest()[:12]).absolute()
    if place.is_dir() and _read_configs(place) == files:
        return place
    temporary = place.with_name(f".{place.name}.{uuid4().hex}.tmp")
    try:
        for name, content in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        shutil.rmtree(place, ignore_errors=True)  # a damaged copy
        os.replace(temporary, place)
        sync_folder(place.parent)
    except OSError:
        if not place.is_dir():  # unless a sweep that began at the same moment has made it
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _read_configs(folder: Path) -> dict[str, bytes]:
    """The contents of the folder's YAML files, by relative path."""
    every = (Path(where) / name for where, _, names in os.walk(folder, followlinks=True) for name in names)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in every if file.suffix == ".yaml"}
