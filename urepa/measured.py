"""Reading what `python -m urepa.bench out=FILE` measured, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.errors import UserError
from urepa.files import read_json

# what a row of `urepa.bench` must say
MEASURED = ("path", "device", "batch_size", "step_s", "tflops_per_s", "peak_memory_bytes", "saved_bytes_per_sample")


def read_measured(file: Path, device: str) -> list[dict[str, Any]]:
    """The rows of a measurement; a UserError if they are another device's, or none. `device`: its name, or a part."""
    if not file.is_file():
        raise UserError(f"measured={file}: there is no such file; `python -m urepa.bench` makes it with out=FILE")
    rows = read_json(file, (dict, list))
    if isinstance(rows, dict):  # several benches, as tests/gpu/bench_h200.py writes them
        rows = [row for bench in rows.values() if isinstance(bench, dict) for row in bench.get("rows", [])]
    if not rows or not all(isinstance(row, dict) and _is_measured(row) for row in rows):
        raise UserError(f"measured={file} does not hold the steps of `python -m urepa.bench` ({', '.join(MEASURED)})")
    others = {row["device"] for row in rows if device.lower() not in row["device"].lower()}
    if others:
        raise UserError(f"measured={file} was measured on {min(others)}, not on {device}; choose device=... of it")
    return rows


def _is_measured(row: dict[str, Any]) -> bool:
    """Has it what `urepa.bench` writes, in its types?"""
    numbers = [row.get(key) for key in MEASURED if key not in ("path", "device", "peak_memory_bytes")]
    are_named = all(isinstance(row.get(key), str) for key in ("path", "device"))
    return are_named and "peak_memory_bytes" in row and all(isinstance(n, int | float) and n > 0 for n in numbers)
