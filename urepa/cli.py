"""Common code of all commands: it prepares Hydra, runs the command and prints mistakes as one line. Entry `urepa`."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from urepa.config import own_package, quick_composition, register
from urepa.config.command_line import check_arguments, quote_argument
from urepa.config.command_line import is_sweep as is_sweep
from urepa.config.commands import COMMANDS
from urepa.config.conf_options import CONF as CONF
from urepa.config.help import HELP, without_groups
from urepa.config.hydra_mode import composed_once
from urepa.config.mistyped_keys import below_null_message, error_message
from urepa.config.run_globs import expand_run_globs
from urepa.config.simpletuner import expand_simpletuner
from urepa.core import safe_output
from urepa.core.errors import UserError, did_you_mean
from urepa.core.escaping import printable
from urepa.core.files import missing_folders, remove_new
from urepa.core.glibc_malloc import keep_freed_memory
from urepa.core.one_line_errors import TRACEBACKS, one_line_mistakes
from urepa.training.checks import resolvers

SWEEP_RECORDS = (Path("outputs/multirun.yaml"), Path("multirun.yaml"))  # as in hydra.sweep.dir of conf/*.yaml
CONF_COPIES = Path("outputs/.jobs/conf")  # made by `urepa.cluster.conf_copy`


def prepare() -> None:
    """Registers schemas, launchers and resolvers and installs the quick composition; once, before Hydra composes."""
    from urepa.cluster import hydra_launchers

    quick_composition.install()
    register()
    hydra_launchers.register()
    resolvers.register()


def run_command(main: Callable[[], None], root: str) -> None:
    """Runs a Hydra main. Mistakes end in one line and exit code 1; HYDRA_FULL_ERROR=1 shows tracebacks instead."""
    safe_output.make_output_safe()
    safe_output.warn_in_one_line()
    shown = contextlib.nullcontext() if HELP.isdisjoint(sys.argv[1:]) else without_groups()
    if TRACEBACKS:
        keep_freed_memory()
        with shown, composed_once():
            _read_arguments(root)
            main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    with one_line_mistakes(), _remove_records_on_error():
        try:
            keep_freed_memory()  # before torch allocates memory
            with shown, composed_once():
                _read_arguments(root)
                main()
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise UserError(error_message(error, root, sys.argv[1:])) from error
        except AssertionError as error:
            message = below_null_message(error, sys.argv[1:])
            if message is None:
                raise
            raise UserError(message) from error


def _read_arguments(root: str) -> None:
    """Replaces sys.argv by the arguments in the form that Hydra reads, and loads the user's own parts that they name.
    Raises UserError for arguments that Hydra would ignore."""
    own_package.load(own_package.given_folders(sys.argv[1:]))
    sweeps = is_sweep(sys.argv[1:])
    expanded = expand_run_globs(expand_simpletuner(sys.argv[1:], root), root, sweeps)
    sys.argv[1:] = [quote_argument(argument, sweeps) for argument in expanded]
    check_arguments(sys.argv[1:], root)


@contextlib.contextmanager
def _remove_records_on_error() -> Iterator[None]:
    """Removes the records that a sweep writes before its first run (multirun.yaml, the copy of conf/) if it is refused.
    Keeps them if a run or a job has started."""
    new = [record for record in SWEEP_RECORDS if not record.exists()]
    copies = missing_folders(CONF_COPIES)
    try:
        yield
    except BaseException:
        for record in new:
            record.unlink(missing_ok=True)
        outputs, jobs = CONF_COPIES.parents[1], CONF_COPIES.parent
        if all(_holds_only(place, below) for place, below in ((outputs, jobs), (jobs, CONF_COPIES))):
            remove_new(copies)
        raise


def _holds_only(folder: Path, path: Path) -> bool:
    """Whether the folder contains nothing else."""
    return not folder.is_dir() or all(found == path for found in folder.iterdir())


def main() -> None:
    """`urepa COMMAND ...` is `python -m urepa.COMMAND ...`, including the commands of launchers/. An unknown command
    ends with one line and exit code 1."""
    safe_output.make_output_safe()
    modules = {command.module.rpartition(".")[2]: command.module for command in COMMANDS.values()}
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    if not given or given in HELP:
        print(usage())
    elif given not in modules:
        near = did_you_mean(given, list(modules))
        sys.exit(f"error: there is no command '{printable(given)}'; it is one of {', '.join(modules)}{near}")
    else:
        del sys.argv[0]
        runpy.run_module(modules[given], run_name="__main__", alter_sys=True)


def usage() -> str:
    """Each command with its description."""
    titles: dict[str, str] = {}
    for command in COMMANDS.values():
        titles.setdefault(command.module.rpartition(".")[2], command.title)
    width = max(map(len, titles))
    rows = "\n".join(f"  {name:<{width}}  {title}" for name, title in titles.items())
    return "urepa COMMAND [ARGUMENTS...]; urepa COMMAND --help\n\n" + rows
