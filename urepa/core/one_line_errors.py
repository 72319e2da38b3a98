"""Error handling of commands: a user's mistake is printed as one line, once for all ranks, with exit code 1."""

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
from urepa.core.errors import NOT_EVALUATED, NotEvaluated, QueueGone, UserError
from urepa.core.escaping import printable

# Errors that repeat if the command is run again, with advice; other system errors (a server, a network disk) may pass
LASTING = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a place that you may read and write, or change its permissions",
    errno.EPERM: "give a place that you may read and write, or change its permissions",
    errno.ENOENT: "give an existing path",
    errno.ENOTDIR: "give a path whose folders are folders",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "give a path without a loop of links",
    errno.EINVAL: "give another path",
}
OTHER_RANKS_WAIT_S = 20.0  # torchrun kills processes 30 seconds after SIGTERM
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # set by the user; this module sets it later
RAISED = re.compile(r"UserError raised while resolving interpolation: (.*)")  # by a resolver of urepa


class ReportedError(SystemExit):
    """Ends a task whose error was already printed. A sweep may continue with the next task, unless the error is of the
    queue and says nothing about the task."""

    def __init__(self, text: str, code: int = 1, of_queue: bool = False) -> None:
        super().__init__(code)
        self.text, self.of_queue = text, of_queue


@contextlib.contextmanager
def one_line_mistakes() -> Iterator[None]:
    """Within a command's task, prints a UserError as one line and ends with exit code 1. This is done in the task,
    because Hydra's launchers would reword or swallow the error. Invalid rank variables are such an error too."""
    try:
        ranks.check_ranks()
        yield
    except UserError as error:
        if TRACEBACKS:
            raise
        code = NOT_EVALUATED if isinstance(error, NotEvaluated) else 1
        _report_and_exit(str(error), code, of_queue=isinstance(error, QueueGone))
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
        if ranks.is_first():  # the others have no error of their own
            print_error("interrupted; the same command goes on from the last checkpoint")
        sys.exit(128 + signal.SIGINT)


def _report_and_exit(text: str, code: int = 1, of_queue: bool = False) -> NoReturn:
    print_error(text)
    raise ReportedError(text, code, of_queue) from None


def system_error_text(error: OSError) -> str:
    """The operation and path that the system refused, and what to do."""
    paths = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    place = f"{paths}: " if paths else ""
    assert error.errno is not None
    return f"{place}{error.strerror}; {LASTING[error.errno]}, and run the same command again"


def print_error(text: str) -> None:
    """Prints an error to stderr, once for all ranks. torchrun (and srun --kill-on-bad-exit) stops all ranks when one
    ends, so the other ranks wait until rank 0 has printed it. A rank that still runs after the wait may have an error
    of its own, and prints it."""
    if not ranks.is_first():
        time.sleep(OTHER_RANKS_WAIT_S)
    sys.stdout.flush()
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)
