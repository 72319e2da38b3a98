"""Reads what `python -m urepa.bench` writes with out=FILE: a list of rows, or named benches with rows each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.files import read_json

# the keys that a row of `urepa.bench` must have
MEASURED = ("path", "device", "batch_size", "step_s", "tflops_per_s", "peak_memory_bytes", "saved_bytes_per_sample")


def read_measured(file: Path, device: str) -> list[dict[str, Any]]:
    """The rows of a measurement on the device of this name. Raises UserError if they are another device's."""
    if not file.is_file():
        raise UserError(f"measured={file}: there is no such file; `python -m urepa.bench` makes it with out=FILE")
    rows = read_json(file, (dict, list))
    if isinstance(rows, dict):  # several benches by name, as tests/gpu/bench_gpu.py writes them
        rows = [row for name, bench in rows.items() for row in _named_rows(name, bench)]
    if not rows or not all(isinstance(row, dict) and _is_measured(row) for row in rows):
        raise UserError(f"measured={file} does not hold the steps of `python -m urepa.bench` ({', '.join(MEASURED)})")
    others = {row["device"] for row in rows if device.lower() not in row["device"].lower()}
    if others:
        raise UserError(f"measured={file} was measured on {min(others)}, not on {device}; give its device=...")
    return rows


def _named_rows(name: str, bench: Any) -> list[Any]:
    """The rows of one bench among several, each with the bench's name; none for a bench that was not measured."""
    rows = bench.get("rows", []) if isinstance(bench, dict) else []
    listed = rows if isinstance(rows, list) else [rows]
    return [row | {"run": name} if isinstance(row, dict) else row for row in listed]


def _is_measured(row: dict[str, Any]) -> bool:
    """Whether the row has the values that `urepa.bench` writes, with their types."""
    numbers = [row.get(key) for key in MEASURED if key not in ("path", "device", "peak_memory_bytes")]
    are_named = all(isinstance(row.get(key), str) for key in ("path", "device"))
    return are_named and "peak_memory_bytes" in row and all(isinstance(n, int | float) and n > 0 for n in numbers)
