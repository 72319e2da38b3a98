"""What every door does: compose, turn a user's mistake into one line, exit."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from urepa.checks import resolvers
from urepa.config import register
from urepa.config.help import HELP, without_groups
from urepa.config.mistakes import CONF as CONF
from urepa.config.mistakes import RAISED, check_arguments, explain, quoted
from urepa.config.mistakes import sweeps_over as sweeps_over
from urepa.config.run_globs import with_runs
from urepa.core import output, ranks
from urepa.core.allocator import keep_freed_memory
from urepa.core.errors import NOT_EVALUATED, NotEvaluated, UserError
from urepa.core.files import new_places, remove_new
from urepa.core.markup import printable

# What trying again will not mend, and what will; anything else of the system may pass (a server, a network's disk)
LASTING = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a place that you may read and write, or change its permissions",
    errno.EPERM: "give a place that you may read and write, or change its permissions",
    errno.ENOENT: "give a path that is there",
    errno.ENOTDIR: "give a path whose folders are folders",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path that is no loop of links",
    errno.EINVAL: "give another path",
}
SWEEP_RECORDS = (Path("outputs/multirun.yaml"), Path("multirun.yaml"))  # in hydra.sweep.dir of conf/*.yaml
CONF_COPIES = Path("outputs/.jobs/conf")  # `urepa.cluster.conf_copy` makes them
FIRST_SPEAKS = 20.0  # seconds; torchrun kills what ignores its SIGTERM for 30
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # asked for by the user; we set it ourselves below


class Said(SystemExit):
    """The end of a task whose mistake was said. A sweep may go on with the next."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(code)
        self.text = text


def prepare() -> None:
    """The schema, the launchers and the resolvers; once per process, before Hydra composes."""
    from urepa.cluster import sweeps

    register()
    sweeps.register()
    resolvers.register()


def open_door(main: Callable[[], None], root: str) -> None:
    """Runs a Hydra main. Mistakes end in one line and exit code 1; HYDRA_FULL_ERROR=1 asks for tracebacks."""
    output.never_fails()
    output.warn_in_one_line()
    shown = contextlib.nullcontext() if HELP.isdisjoint(sys.argv[1:]) else without_groups()
    if TRACEBACKS:
        keep_freed_memory()
        with shown:
            _read_arguments(root)
            main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    with one_line_mistakes(), _unrecorded_if_refused():
        try:
            keep_freed_memory()  # before torch takes any
            with shown:
                _read_arguments(root)
                main()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error, root, sys.argv[1:])) from error


def _read_arguments(root: str) -> None:
    """What was typed as Hydra reads it; UserError for what it would pass over."""
    sweeps = sweeps_over(sys.argv[1:])
    sys.argv[1:] = [quoted(argument, sweeps) for argument in with_runs(sys.argv[1:], root, sweeps)]
    check_arguments(sys.argv[1:], root)


@contextlib.contextmanager
def _unrecorded_if_refused() -> Iterator[None]:
    """A sweep's record and its copy of conf/ are written before its first run. Where that is refused they go again; not
    where a run or a job has begun."""
    new = [record for record in SWEEP_RECORDS if not record.exists()]
    copies = new_places(CONF_COPIES)
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
    """Is nothing else there?"""
    return not folder.is_dir() or all(found == path for found in folder.iterdir())


@contextlib.contextmanager
def one_line_mistakes() -> Iterator[None]:
    """Inside a door's task: a UserError is said in one line and the process exits with 1, here already,
    because Hydra's launchers would report it in their own words or swallow it. A process whose variables say no rank
    is such a mistake."""
    try:
        ranks.check_ranks()
        yield
    except UserError as error:
        if TRACEBACKS:
            raise
        _end(str(error), NOT_EVALUATED if isinstance(error, NotEvaluated) else 1)
    except InterpolationResolutionError as error:
        if TRACEBACKS:
            raise
        reason = str(error).splitlines()[0]
        said = RAISED.match(reason)
        advice = f"compose parts that belong together, or give {error.full_key}"
        _end(said[1] if said else f"{error.full_key}: {reason}; {advice}")
    except OSError as error:
        if TRACEBACKS or error.errno not in LASTING:
            raise
        _end(of_the_system(error))
    except KeyboardInterrupt:
        if TRACEBACKS:
            raise
        if ranks.is_first():  # the others have no mistake of their own to say
            say("interrupted; the same command goes on from the last checkpoint")
        sys.exit(128 + signal.SIGINT)


def _end(text: str, code: int = 1) -> NoReturn:
    say(text)
    raise Said(text, code) from None


def of_the_system(error: OSError) -> str:
    """What the system refused, of which path, and what to do."""
    paths = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    place = f"{paths}: " if paths else ""
    assert error.errno is not None
    return f"{place}{error.strerror}; {LASTING[error.errno]}, and run the same command again"


def say(text: str) -> None:
    """To stderr, once for all ranks: torchrun (and srun --kill-on-bad-exit) stops them all as soon as one has ended, so
    the others leave that to the first, which speaks. Where they still live after a while, the mistake may be this
    rank's alone, and it says it."""
    if not ranks.is_first():
        time.sleep(FIRST_SPEAKS)
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)
