"""Sends a run's rows to several destinations, each with a cursor and a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from urepa.core.run_protocols import RunSender


class SeveralSenders:
    """Passes every call on to all senders."""

    def __init__(self, senders: Sequence[RunSender]) -> None:
        self.senders = senders

    @property
    def where(self) -> str:
        return "; ".join(one.where for one in self.senders)

    def start(self, data: dict[str, Any]) -> None:
        for one in self.senders:
            if not one.has_all():  # a finished run may lack the rows of one of them
                one.start(data)

    def wake(self) -> None:
        for one in self.senders:
            one.wake()

    def has_all(self) -> bool:
        return all(one.has_all() for one in self.senders)

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        """Closes all at the same time, so that the longest patience counts and not the sum."""
        with ThreadPoolExecutor(len(self.senders)) as pool:
            list(pool.map(lambda one: one.close(status, artifacts, tags), self.senders))
