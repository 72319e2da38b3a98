"""Printing never makes a command fail: not for characters that the terminal's encoding lacks, nor for a closed pipe or
a full disk behind a redirection."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import warnings
from pathlib import Path
from typing import Any

from urepa.core.escaping import printable

PACKAGE = Path(__file__).parents[1]
DEFAULT_FORMAT = warnings.formatwarning


class SafeStream(io.FileIO):
    """A writable stream over a file descriptor that never raises. Output that cannot be written is dropped. stderr gets
    one warning, unless the reader closed the pipe (`| head`)."""

    warned = False

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
            while written is None:  # another program may have made this terminal or pipe non-blocking
                select.select([], [self], [])
                written = super().write(data)
            return written
        except OSError as error:
            self._warn_once(error)
            return memoryview(data).nbytes

    def _warn_once(self, error: OSError) -> None:
        if self.warned or error.errno == errno.EPIPE:
            return
        self.warned = True
        line = f"warning: what is printed cannot be written ({error.strerror}); the command goes on without it\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())


def make_output_safe() -> None:
    """Replaces this process's stdout and stderr by streams that never raise. Only the first call has an effect, and
    streams that other code has installed are kept."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed (`>&-`): the next file that is opened would get its number, and what is printed
            _open_devnull(number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.flush()
            buffer = io.BufferedWriter(SafeStream(stream.fileno(), "wb", closefd=False))
            by_line = stream.line_buffering or stream.write_through  # write_through is set by PYTHONUNBUFFERED
            own = io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=by_line)
            setattr(sys, name, own)


def warn_in_one_line() -> None:
    """Prints warnings of this package without the line of code that issued them. Other warnings are unchanged."""

    def of_ours(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if Path(filename).is_relative_to(PACKAGE):
            return f"warning: {printable(str(message))}\n"
        return DEFAULT_FORMAT(message, category, filename, lineno, line)

    warnings.formatwarning = of_ours


def _open_devnull(number: int) -> None:
    """Opens a closed descriptor on /dev/null."""
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, number)
        os.set_inheritable(number, True)
        if nothing != number:
            os.close(nothing)
