"""Copies metrics.jsonl to a TensorBoard event file: a scalar for each value, with the row's step and time.

The file has a fixed name and is continued by the next process, which TensorBoard's own writer cannot do: it begins a
file for each process, and what a killed process had written would be there twice.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from urepa.runs.metrics import NOT_METRICS, number
from urepa.runs.trackers.appending_sender import AppendingSender

NAME = "events.out.tfevents.1.urepa"  # TensorBoard looks for `tfevents` in names
VERSION = "brain.Event:2"  # of the format, in a file's first event


class TensorBoardSender(AppendingSender):
    """Writes a run's event file."""

    def __init__(self, folder: Path, name: str) -> None:
        file = folder / "tensorboard" / NAME
        super().__init__(folder, "TensorBoard", file, folder / "tensorboard.json")

    def _import(self) -> None:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401

    def _beginning(self) -> bytes:
        return _record(wall_time=0.0, file_version=VERSION)

    def _encode(self, row: dict[str, Any]) -> bytes:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=k, simple_value=number(v)) for k, v in row.items() if k not in NOT_METRICS]
        return _record(wall_time=row["time"] / 1000, step=row["step"], summary=Summary(value=values))


def _record(**event: Any) -> bytes:
    """An event as a record of the file: length, checksum, bytes, checksum."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(**event).SerializeToString())
    return record.getvalue()
