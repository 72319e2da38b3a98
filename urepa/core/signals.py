"""SIGTERM, SIGINT and SIGUSR2 request a stop. The training loop stops at the next step boundary."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from urepa.core.collectives import HostVote
from urepa.core.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopSignals:
    """A context in which signals are recorded instead of obeyed. A second Ctrl-C is obeyed at once."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}
        self._vote = HostVote()

    def __enter__(self) -> "StopSignals":
        self._previous = {s: signal.signal(s, self._remember) for s in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def received_on_any_rank(self) -> int:
        """The signal that any rank has received (0: none); all ranks get the same value."""
        return self._vote.maximum(self.received)

    def obey(self, number: int) -> None:
        """To be called after everything is saved. Passes SIGUSR2 on to the previous handler (submitit requeues the
        job). For other signals ends the process with 128 + n, so that a sweep stops instead of starting its next
        job."""
        handler = self._previous[number]
        if number == signal.SIGUSR2 and callable(handler):
            signal.signal(number, handler)
            os.kill(os.getpid(), number)
        raise Stopped(128 + number)
