"""Times loops in turns and returns the median of each loop's rounds, and its ratio to those of the other loops."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from urepa.core import progress
from urepa.costs.benchmark.loops import Loop
from urepa.costs.counting import Flops, SavedBytes


@dataclass(frozen=True)
class Turn:
    """Some steps of one loop: seconds, seconds of them that it waited for data, peak memory in bytes (0 on a CPU) and
    the process's minor page faults."""

    spent: float
    waited: float
    peak: int
    faults: int


def measure(
    loops: list[Loop], model: nn.Module, batch_size: int, device: torch.device, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """A row per loop: seconds a step, images/s, TFLOP/s over the FLOPs that were counted, peak memory (GPU only),
    bytes saved for backward per sample, the share of time that it waited for data, minor page faults a step (CPU only:
    memory that is given back and taken again), and the ratio of its step time to that of each other loop ("of"). Times
    and faults are medians of the rounds. The first two steps of every loop are not timed."""
    counts = [_count(loop, model, device) for loop in loops]
    turns: list[list[Turn]] = [[] for _ in loops]
    for _ in progress.bar(range(rounds), desc="bench", unit="round"):
        for i, loop in enumerate(loops):
            gc.collect()
            with loop.inside():
                turns[i].append(_time_steps(loop, steps, device))
    seconds = [[turn.spent / steps for turn in own] for own in turns]
    medians = [statistics.median(s) for s in seconds]
    on_gpu = device.type == "cuda"
    return [
        {
            "path": loop.name,
            "step_s": medians[i],
            "steps_s": seconds[i],
            "images_per_s": batch_size / medians[i],
            "flops": counts[i][0],
            "tflops_per_s": counts[i][0] / medians[i] / 1e12,
            "peak_memory_bytes": max(turn.peak for turn in turns[i]) if on_gpu else None,
            "saved_bytes_per_sample": counts[i][1] / batch_size,
            "data_wait_share": statistics.mean(turn.waited / turn.spent for turn in turns[i]),
            "minor_faults_per_step": None if on_gpu else statistics.median(turn.faults / steps for turn in turns[i]),
            "of": {other.name: medians[i] / medians[j] for j, other in enumerate(loops)},
            "batch_size": batch_size,
            "device": _name(device),
        }
        for i, loop in enumerate(loops)
    ]


def _count(loop: Loop, model: nn.Module, device: torch.device) -> tuple[int, int]:
    """FLOPs and saved bytes of a step, counted in eager mode, because a compiled block hides both. Then makes a warm-up
    step."""
    flops = Flops()
    with loop.inside():
        saved = SavedBytes(model)  # here, because another memory format has other storages
        with torch.compiler.set_stance("force_eager"), flops, saved:
            loop.step()
        loop.step()
        _wait(device)
    return flops.total, saved.total


def _time_steps(loop: Loop, steps: int, device: torch.device) -> Turn:
    """Times `steps` steps of a loop."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loop.waited = 0.0
    _wait(device)
    faults, begin = _minor_faults(), time.perf_counter()
    for _ in range(steps):
        loop.step()
    _wait(device)
    spent = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Turn(spent, loop.waited, peak, _minor_faults() - faults)


def _minor_faults() -> int:
    """Minor page faults of this process and all its threads so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
