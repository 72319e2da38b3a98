"""What all senders of metrics.jsonl share: a thread that sends each row once, with a cursor that is stored on disk.

The destination may be down, slow, full or killed; training never waits for it. Rows that could not be sent are sent
when the same command runs again.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from urepa.core.abstract import Abstract
from urepa.core.errors import UserError
from urepa.core.json_lines import BEGINNING, Line
from urepa.runs.metrics import is_final, row_lines

RETRY_SECONDS = 5.0

End = tuple[str, list[Path], dict[str, str]]  # a run's status, its artifacts, its last tags


class Position(NamedTuple):
    """A line of metrics.jsonl and its place in the order of rows: the step, and within a step the training row before
    the evaluations' rows. The place uses steps, so that another trainer.log_every sends no row twice."""

    line: Line
    step: int
    evaluations: int

    @property
    def place(self) -> list[int]:
        return [self.step, self.evaluations]


START = Position(BEGINNING, -1, 0)


class Follower(Abstract):
    """Follows a run's metrics.jsonl in a thread. A subclass says where rows go (`_send_new_rows`) and keeps a cursor
    with the place of the last row `sent` and whether the run was `finished`.

    Args:
        folder: of the run.
        service: the destination's name in messages.
        label: the same with its address.
        patience: seconds that `close` waits.
    """

    def __init__(self, folder: Path, service: str, label: str, patience: float) -> None:
        self.folder, self.service, self.label, self.patience = folder, service, label, patience
        self.metrics_file = folder / "metrics.jsonl"
        self._data: dict[str, Any] = {}
        self._final: End | None = None
        self._wake = threading.Event()
        self._done = threading.Event()
        self._imported = threading.Event()
        self._warned: set[str] = set()
        self._handled = START  # rows up to here are sent or cannot be sent; this process need not read them again
        self._thread = threading.Thread(target=self._work, name=service, daemon=True)

    def start(self, data: dict[str, Any]) -> None:
        """Starts sending in the background. `data`: the fingerprint of the data set. Raises UserError if the cursor's
        file is damaged."""
        self._data = data
        self._save(self._cursor() | {"finished": False})
        self._thread.start()

    def wake(self) -> None:
        """Tells the thread that there are new rows."""
        self._wake.set()

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        """Sends the rest within at most `patience` seconds, and prints a message if rows remain. The time to import the
        destination's package does not count, because a short run on a busy machine may end before the import does."""
        self._final = (status, artifacts, tags)
        self._wake.set()
        self._imported.wait()
        if not self._done.wait(self.patience):
            unsent = sum(1 for _ in self._unsent_rows(self._cursor()))
            warnings.warn(
                f"{self.label} did not take {unsent} rows in time; they are in {self.metrics_file} "
                "and are sent when the same command runs again"
                if unsent
                else f"{self.label} did not take the end of {self.folder} in time (its status, tags and files); "
                "it is sent when the same command runs again",
                stacklevel=2,
            )
            self._done.set()  # the next run of a sweep does not wait for this thread

    # --- what a destination does ------------------------------------------------------------------------

    @abstractmethod
    def _import(self) -> None:
        """Imports the destination's package. An ImportError is reported when sending fails."""

    @abstractmethod
    def _send_new_rows(self, final: End | None) -> None:
        """Sends every row after the cursor and then, if `final` is given, the end of the run; sets `_done` after that.
        May raise anything: it is called again."""

    @abstractmethod
    def _cursor(self) -> dict[str, Any]:
        """The stored cursor, with `sent` and `finished`; a new one if there is none."""

    @abstractmethod
    def _save(self, cursor: dict[str, Any]) -> None:
        """Stores the cursor."""

    @abstractmethod
    def _reset(self) -> None:
        """After a failure: drops what is open, so that it is opened again."""

    # --- the thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(Exception):  # reported below, like any failure
            self._import()
        self._imported.set()
        while not self._done.is_set():
            self._wake.wait(RETRY_SECONDS)
            self._wake.clear()
            final = self._final
            try:
                self._send_new_rows(final)
            except Exception as error:  # noqa: BLE001  no exception of a destination may stop training
                self._reset()
                self._warn_of_failure(error)
                if final is not None and not self._done.wait(1.0):
                    self._wake.set()

    def _warn_once(self, sentence: str) -> None:
        """Prints a warning the first time that it occurs."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(f"{self.folder}: {sentence}", stacklevel=2)

    def _warn_of_failure(self, error: Exception) -> None:
        if isinstance(error, UserError):
            self._warn_once(f"{self.service} gets nothing for now: {error}. All rows are in {self.metrics_file}")
        elif "failure" not in self._warned:
            self._warned.add("failure")
            warnings.warn(f"{self.label} is not answering, will try again: {error}", stacklevel=2)

    def _warn_of_damage(self, line: Line) -> None:
        self._warn_once(
            f"line {line.number} of {self.metrics_file} {line.damage}: it is not in {self.label} unless it was "
            "sent before"
        )

    def _new_rows(self, sent: list[int]) -> Iterator[Position]:
        """The rows after the place `sent`, one at a time, each read once by this process. Damaged lines are reported
        and skipped."""
        for position in positions(self.metrics_file, self._handled):
            if position.line.damage:
                self._warn_of_damage(position.line)
            elif position.place > sent:
                yield position

    def _unsent_rows(self, cursor: dict[str, Any]) -> Iterator[Position]:
        """The rows after the cursor, one at a time. Damaged lines are skipped."""
        for position in positions(self.metrics_file, self._handled):
            if not position.line.damage and position.place > cursor["sent"]:
                yield position


def positions(metrics_file: Path, after: Position = START) -> Iterator[Position]:
    """The lines of metrics.jsonl after a position. A damaged line counts as an evaluation at the previous step: if it
    was one, the lines after it keep their places; if not, nothing depends on it."""
    step, evaluations = after.step, after.evaluations
    for line in row_lines(metrics_file, after.line):
        if line.damage:
            evaluations += 1
        elif line.value["step"] != step:
            step, evaluations = line.value["step"], int(is_final(line.value))
        else:
            evaluations += is_final(line.value)
        yield Position(line, step, evaluations)
