"""How a command ends: a user's mistake in one line with exit code 1, once for all ranks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from omegaconf.errors import InterpolationResolutionError

from urepa.core import ranks
from urepa.core.errors import NOT_EVALUATED, NotEvaluated, UserError
from urepa.core.escaping import printable

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
OTHER_RANKS_WAIT_S = 20.0  # seconds; torchrun kills what ignores its SIGTERM for 30
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # asked for by the user; we set it ourselves below
RAISED = re.compile(r"UserError raised while resolving interpolation: (.*)")  # by a resolver of ours


class ReportedError(SystemExit):
    """Ends a task whose error was already printed. A sweep may continue with the next task."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(code)
        self.text = text


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
        _report_and_exit(str(error), NOT_EVALUATED if isinstance(error, NotEvaluated) else 1)
    except InterpolationResolutionError as error:
        if TRACEBACKS:
            raise
        reason = str(error).splitlines()[0]
        said = RAISED.match(reason)
        advice = f"compose parts that belong together, or give {error.full_key}"
        _report_and_exit(said[1] if said else f"{error.full_key}: {reason}; {advice}")
    except OSError as error:
        if TRACEBACKS or error.errno not in LASTING:
            raise
        _report_and_exit(system_error_text(error))
    except KeyboardInterrupt:
        if TRACEBACKS:
            raise
        if ranks.is_first():  # the others have no mistake of their own to say
            print_error("interrupted; the same command goes on from the last checkpoint")
        sys.exit(128 + signal.SIGINT)


def _report_and_exit(text: str, code: int = 1) -> NoReturn:
    print_error(text)
    raise ReportedError(text, code) from None


def system_error_text(error: OSError) -> str:
    """Which operation on which path the system refused, and what to do."""
    paths = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    place = f"{paths}: " if paths else ""
    assert error.errno is not None
    return f"{place}{error.strerror}; {LASTING[error.errno]}, and run the same command again"


def print_error(text: str) -> None:
    """Prints an error to stderr, once for all ranks: torchrun (and srun --kill-on-bad-exit) stops all ranks when one
    ends, so the other ranks wait for rank 0 to print it. If they still run after the wait, the error may be this rank's
    alone, and it prints it."""
    if not ranks.is_first():
        time.sleep(OTHER_RANKS_WAIT_S)
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)
