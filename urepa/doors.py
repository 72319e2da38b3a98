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

from hydra.errors import HydraException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from urepa import resolvers
from urepa.config import register
from urepa.errors import NOT_EVALUATED, NotEvaluated, UserError
from urepa.markup import printable
from urepa.mistakes import CONF as CONF
from urepa.mistakes import RAISED, check_arguments, explain, quoted
from urepa.mistakes import sweeps_over as sweeps_over
from urepa.ranks import is_first

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
FIRST_SPEAKS = 20.0  # seconds; torchrun kills what ignores its SIGTERM for 30
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # asked for by the user; we set it ourselves below


def prepare() -> None:
    """The schema, the launchers and the resolvers; once per process, before Hydra composes."""
    from urepa import sweeps

    register()
    sweeps.register()
    resolvers.register()


def open_door(main: Callable[[], None], root: str) -> None:
    """Runs a Hydra main. Mistakes end in one line and exit code 1; HYDRA_FULL_ERROR=1 asks for tracebacks."""
    sweeps = sweeps_over(sys.argv[1:])
    sys.argv[1:] = [quoted(argument, sweeps) for argument in sys.argv[1:]]
    if TRACEBACKS:
        check_arguments(sys.argv[1:], root)
        main()
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    with one_line_mistakes(), _unrecorded_if_refused():
        try:
            check_arguments(sys.argv[1:], root)
            main()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error, root, sys.argv[1:])) from error


@contextlib.contextmanager
def _unrecorded_if_refused() -> Iterator[None]:
    """Hydra writes a record of a sweep before its first run: one that is refused leaves none."""
    new = [record for record in SWEEP_RECORDS if not record.exists()]
    try:
        yield
    except BaseException:
        for record in new:
            record.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it, or it is the working folder
                record.parent.rmdir()
        raise


@contextlib.contextmanager
def one_line_mistakes() -> Iterator[None]:
    """Inside a door's task: a UserError is said in one line and the process exits with 1, here already,
    because Hydra's launchers would report it in their own words or swallow it."""
    try:
        yield
    except UserError as error:
        if TRACEBACKS:
            raise
        _say(str(error))
        sys.exit(NOT_EVALUATED if isinstance(error, NotEvaluated) else 1)
    except InterpolationResolutionError as error:
        if TRACEBACKS:
            raise
        reason = str(error).splitlines()[0]
        said = RAISED.match(reason)
        _say(
            said[1]
            if said
            else f"{error.full_key}: {reason}; compose parts that belong together, or give {error.full_key}"
        )
        sys.exit(1)
    except OSError as error:
        if TRACEBACKS or error.errno not in LASTING:
            raise
        _say(of_the_system(error))
        sys.exit(1)
    except KeyboardInterrupt:
        if TRACEBACKS:
            raise
        if is_first():  # the others have no mistake of their own to say
            _say("interrupted; the same command goes on from the last checkpoint")
        sys.exit(128 + signal.SIGINT)


def of_the_system(error: OSError) -> str:
    """What the system refused, of which path, and what to do."""
    paths = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    place = f"{paths}: " if paths else ""
    assert error.errno is not None
    return f"{place}{error.strerror}; {LASTING[error.errno]}, and run the same command again"


def _say(text: str) -> None:
    """To stderr, once for all ranks: torchrun stops them all as soon as one has ended, so the others leave that to the
    first, which speaks. Where it has not ended by then, the mistake is another rank's alone, and that one says it."""
    if not is_first():
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        time.sleep(FIRST_SPEAKS)
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)
