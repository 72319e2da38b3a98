"""What trackers wrote, read back: (step, metric, value) in the order of the files."""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from urepa.runs.metrics import NOT_METRICS, TIMINGS, number, read_rows
from urepa.runs.trackers.tensorboard_sender import NAME

Value = tuple[int, str, float]  # step, metric, value
FLOAT32 = 1e-6  # TensorBoard's files have 32-bit floats


def in_csv(folder: Path) -> list[Value]:
    with open(folder / "metrics.csv", newline="") as file:
        return [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]


def in_tensorboard(folder: Path) -> list[Value]:
    """Read by TensorBoard's own loader."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    events = [Event.FromString(raw) for raw in RawEventFileLoader(str(folder / "tensorboard" / NAME)).Load()]
    assert events[0].file_version == "brain.Event:2"
    return [(event.step, value.tag, value.simple_value) for event in events[1:] for value in event.summary.value]


def in_wandb(folder: Path) -> list[Value]:
    """The history in all of a run's offline files, in the order of their beginnings, as `wandb sync` puts them
    together. W&B's own step of a row is its number."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for raw in _log_records(file.read_bytes()):
            record = Record.FromString(raw)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    return [
        (int(row["step"]), key, number(value))
        for row in rows
        for key, value in sorted(row.items())
        if key not in NOT_METRICS and not key.startswith("_")
    ]


def _log_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, whose blocks have 32 KiB, behind W&B's header of 7 bytes."""
    at, block, parts = 7, 1 << 15, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if not kind:
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def expected(folder: Path) -> list[Value]:
    rows = read_rows(folder / "metrics.jsonl")
    return [(row["step"], k, number(v)) for row in rows for k, v in sorted(row.items()) if k not in NOT_METRICS]


def assert_same(found: list[Value], folder: Path, rounding: float = 0.0) -> None:
    """Every value of metrics.jsonl is there once, in the order of the rows; within a row there is no order. Times and
    rates of rows that a resumed run computed again may differ. `rounding`: relative, of the file's numbers."""
    there = expected(folder)
    assert [step for step, _, _ in found] == [step for step, _, _ in there]
    for one, other in zip(_in_order(found), _in_order(there), strict=True):
        assert one[:2] == other[:2]
        is_equal = math.isclose(one[2], other[2], rel_tol=rounding) or (math.isnan(one[2]) and math.isnan(other[2]))
        assert is_equal or one[1] in TIMINGS, (one, other)


def _in_order(values: list[Value]) -> list[Value]:
    """By step and metric; values of one metric at one step stay in order."""
    return sorted(values, key=lambda value: value[:2])
