"""Loops take turns; what is told is the median of a loop's rounds and its ratio to the others'."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from torch import nn

from urepa import progress
from urepa.benchmark.loops import Loop
from urepa.counting import SavedBytes, flop_counter


def measure(
    loops: list[Loop], model: nn.Module, batch_size: int, device: torch.device, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """A row per loop: seconds a step, images/s, TFLOP/s over the FLOPs that were counted, peak memory (GPU only),
    bytes saved for backward per sample, the share of time that it waited for data, and the ratio of its step time
    to that of each other loop ("of"). The first two steps of every loop are not timed."""
    counts = [_count(loop, model, device) for loop in loops]
    seconds: list[list[float]] = [[] for _ in loops]
    waits: list[float] = [0.0 for _ in loops]
    peaks: list[int | None] = [None for _ in loops]
    for _ in progress.bar(range(rounds), desc="bench", unit="round"):
        for i, loop in enumerate(loops):
            gc.collect()
            with loop.inside():
                spent, waited, peak = _timed(loop, steps, device)
            seconds[i].append(spent / steps)
            waits[i] += waited / (rounds * spent)
            peaks[i] = peak if peak is None else max(peak, peaks[i] or 0)
    medians = [statistics.median(s) for s in seconds]
    return [
        {
            "path": loop.name,
            "step_s": medians[i],
            "steps_s": seconds[i],
            "images_per_s": batch_size / medians[i],
            "flops": counts[i][0],
            "tflops_per_s": counts[i][0] / medians[i] / 1e12,
            "peak_memory_bytes": peaks[i],
            "saved_bytes_per_sample": counts[i][1] / batch_size,
            "data_wait_share": waits[i],
            "of": {other.name: medians[i] / medians[j] for j, other in enumerate(loops)},
            "batch_size": batch_size,
            "device": _name(device),
        }
        for i, loop in enumerate(loops)
    ]


def _count(loop: Loop, model: nn.Module, device: torch.device) -> tuple[int, int]:
    """FLOPs and saved bytes of a step, in eager mode: a compiled block shows neither. Then one to warm up."""
    flops = flop_counter()
    with loop.inside():
        saved = SavedBytes(model)  # here: another memory format is other storages
        with torch.compiler.set_stance("force_eager"), flops, saved:
            loop.step()
        loop.step()
        _wait(device)
    return flops.get_total_flops(), saved.total


def _timed(loop: Loop, steps: int, device: torch.device) -> tuple[float, float, int | None]:
    """Seconds, seconds waited, and peak memory of so many steps."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loop.waited = 0.0
    _wait(device)
    begin = time.perf_counter()
    for _ in range(steps):
        loop.step()
    _wait(device)
    spent = time.perf_counter() - begin
    return spent, loop.waited, torch.cuda.max_memory_allocated() if on_gpu else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
