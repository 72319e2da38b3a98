"""The tables of bench.md, for the documentation."""

from __future__ import annotations

import datetime
from typing import Any

GIB = 2**30
GOALS = {  # of our own step: seconds, GiB
    "full objective": (0.40, 65.0),
    "diffusion_fraction=0.25": (0.16, None),
}
Results = dict[str, dict[str, Any]]


def markdown(done: Results) -> str:
    """The measurements; and for what was not measured, why."""
    parts = [_head(done), _goals(done), _steps(done), _memory(done), _others(done)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_kind(done: Results, kind: str) -> Results:
    return {name: result for name, result in done.items() if result["kind"] == kind}


def _own(result: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in result.get("rows", []) if row["path"] == "urepa"), None)


def _head(done: Results) -> str:
    rows = [row for result in done.values() for row in result.get("rows", [])]
    if not rows:
        return f"{datetime.date.today()}; `python tests/gpu/bench_gpu.py`"
    versions = ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())
    cuda = f"CUDA {rows[0]['cuda']}, " if rows[0]["cuda"] else ""
    return f"{datetime.date.today()}; {rows[0]['device']}, {cuda}{versions}; `python tests/gpu/bench_gpu.py`"


def _goals(done: Results) -> str:
    lines = ["| goal, track A at batch 128 | measured | met |", "|---|---|---|"]
    for name, (seconds, gib) in GOALS.items():
        row = _own(done.get(name, {}))
        if row is None or row["batch_size"] != 128:
            lines.append(f"| {name}: {seconds:.2f} s a step | not measured | |")
            continue
        lines.append(f"| {name}: {seconds:.2f} s a step | {row['step_s']:.3f} s | {_yes(row['step_s'] <= seconds)} |")
        if gib is not None:
            peak = row["peak_memory_bytes"] / GIB
            lines.append(f"| {name}: {gib:.0f} GiB | {peak:.1f} GiB | {_yes(peak <= gib)} |")
    return "\n".join(lines)


def _steps(done: Results) -> str:
    lines = [
        "| run | loop | batch | s/step | of the first loop | images/s | TFLOP/s | peak GiB | waits for data |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in _of_kind(done, "steps").items():
        if "why" in result:
            lines.append(f"| {name} | not measured: {result['why']} | | | | | | | |")
            continue
        first = result["rows"][0]["path"]
        for row in result["rows"]:
            peak = row["peak_memory_bytes"]
            lines.append(
                f"| {name} | {row['path']} | {row['batch_size']} | {row['step_s']:.3f} | {row['of'][first]:.2f} | "
                f"{row['images_per_s']:.0f} | {row['tflops_per_s']:.3g} | "
                f"{'-' if peak is None else f'{peak / GIB:.1f}'} | {row['data_wait_share']:.1%} |"
            )
    return "\n".join(lines)


def _memory(done: Results) -> str:
    lines = ["| peak memory | planned, GiB | measured, GiB | measured of planned |", "|---|---|---|---|"]
    for name, result in _of_kind(done, "memory").items():
        planned = result.get("planned_peak_bytes")
        shown = "-" if planned is None else f"{planned / GIB:.3g}"
        if "why" in result:
            lines.append(f"| {name} | {shown} | not measured: {result['why']} | |")
        else:
            lines.append(f"| {name} | {shown} | {result['peak_memory_bytes'] / GIB:.3g} | {result['of_plan']:.3f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _others(done: Results) -> str:
    lines = [_waits(name, result) for name, result in _of_kind(done, "waits").items()]
    for name, result in _of_kind(done, "tokens").items():
        lines += _reading(name, result)
    return "\n".join(lines)


def _waits(name: str, result: dict[str, Any]) -> str:
    if "why" in result:
        return f"- {name}: not measured: {result['why']}"
    if result["waits"]:
        return f"- {name}: an update waits, at {result['where']}"
    return f"- {name}: {result['steps']} updates, none of which waits after the warm-up"


def _reading(name: str, result: dict[str, Any]) -> list[str]:
    if "why" in result:
        return [f"- {name}: not measured: {result['why']}"]
    lines = [
        f"- {name}: from the store to the device (page cache warm), tokens alone by one thread "
        f"{result['tokens_samples_per_s']:.0f} samples/s ({result['tokens_gb_per_s']:.2f} GB/s), whole batches "
        f"{result['reader_samples_per_s']:.0f} samples/s"
    ]
    for run, needed in result["needed_samples_per_s"].items():
        alone, whole = result["tokens_of_needed"][run], result["reader_of_needed"][run]
        lines.append(
            f"- {name}, {run}: the step needs {needed:.0f} samples/s; tokens alone come {alone:.1f} times as fast, "
            f"whole batches {whole:.1f} times"
        )
    return lines


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"
