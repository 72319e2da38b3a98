"""Copies metrics.jsonl to a file in the run's folder that only grows, with a cursor that has the file's size.

A process that was killed while writing leaves bytes behind that size; the next one cuts them off and writes the same
rows again, so that each row is in the file once.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from urepa.core.files import read_json, write_whole
from urepa.runs.trackers.following_sender import START, End, Follower

PATIENCE = 30.0  # seconds; a file is slow only on a slow disk


class AppendingSender(Follower):
    """Writes to `file`; the cursor is in `cursor_file`: the place of the last row `sent`, the file's size in `bytes`,
    and whether the run was `finished`."""

    def __init__(self, folder: Path, service: str, file: Path, cursor_file: Path) -> None:
        super().__init__(folder, service, str(file), PATIENCE)
        self.file, self.cursor_file = file, cursor_file

    @property
    def where(self) -> str:
        return str(self.file)

    def has_all(self) -> bool:
        """Whether the run is finished, everything was written, and the file is still there."""
        cursor = self._cursor()
        is_there = self.file.is_file() and self.file.stat().st_size >= cursor["bytes"]
        return bool(cursor["finished"]) and is_there and next(self._unsent_rows(cursor), None) is None

    @abstractmethod
    def _beginning(self) -> bytes:
        """The first bytes of a new file."""

    @abstractmethod
    def _encode(self, row: dict[str, Any]) -> bytes:
        """A row as it is written."""

    def _import(self) -> None:
        """Nothing; a subclass that needs a package imports it."""

    def _reset(self) -> None:
        """Nothing; the file is opened for each batch."""

    def _cursor(self) -> dict[str, Any]:
        known = read_json(self.cursor_file) if self.cursor_file.exists() else {}
        return {"sent": START.place, "bytes": 0, "finished": False} | known

    def _save(self, cursor: dict[str, Any]) -> None:
        write_whole(self.cursor_file, json.dumps(cursor))

    def _send_new_rows(self, final: End | None) -> None:
        cursor = self._cursor()
        there = self.file.stat().st_size if self.file.is_file() else 0
        if there < cursor["bytes"]:
            self._warn_once(f"{self.file} is shorter than it was, or gone; it is written anew")
            cursor, self._handled = cursor | {"sent": START.place, "bytes": 0}, START
        self.file.parent.mkdir(exist_ok=True)
        last, sent = self._handled, cursor["sent"]
        with open(self.file, "r+b" if there else "wb") as opened:
            opened.truncate(cursor["bytes"])
            opened.seek(cursor["bytes"])
            if not cursor["bytes"]:
                opened.write(self._beginning())
            for last in self._new_rows(sent):
                opened.write(self._encode(last.line.value))
                cursor["sent"] = last.place
            opened.flush()
            os.fsync(opened.fileno())
            cursor["bytes"] = opened.tell()
        cursor["finished"] = final is not None and final[0] == "FINISHED"
        self._save(cursor)
        self._handled = last
        if final is not None:
            self._done.set()
