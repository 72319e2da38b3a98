"""The runs of `bench_gpu.py`, in a separate process that does one run after the other.

A run is a kind and the overrides of a config; its result is plain data. "why" in it gives the reason why something was
not measured.
"""

from __future__ import annotations

import gc
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import hydra
import torch
from accelerate.state import AcceleratorState
from waits import WARM_UP, losses_without_waiting

from urepa import bench
from urepa.cli import CONF, prepare
from urepa.core.errors import UserError
from urepa.core.teacher_names import ALONE
from urepa.costs.benchmark.loops import BenchLoops
from urepa.costs.benchmark.random_data import SyntheticTrack, settings_like
from urepa.costs.estimate import Device, plan
from urepa.data.reader import Layout, Slot, TrainingReader
from urepa.runs.run_folder import to_plain
from urepa.training.assembly import build_part
from urepa.training.checks.combinations import check
from urepa.training.run_lifecycle import accelerate_for

Rows = dict[str, dict[str, Any]]  # our own rows of earlier runs, by their names
PACKAGE = Path(bench.__file__).parent
NO_GPU = "a CPU has no memory of a device to watch and nothing to wait for"


def serve(connection: Any) -> None:
    """Answers requests, each a dict of `result`'s arguments, until the other end closes."""
    prepare()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(result(**request))


def result(kind: str, overrides: list[str], rows: Rows) -> tuple[dict[str, Any], bool]:
    """The result of a run of this kind, and whether the process can be used for another run: after a failure its state
    is unknown."""
    begin = time.monotonic()
    lives = True
    try:
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            config = to_plain(hydra.compose("bench", overrides))
        check(config, [])
        answer: dict[str, Any] = KINDS[kind](config, rows)
    except UserError as error:
        answer = {"why": str(error)}
    except Exception as error:  # noqa: BLE001  the other runs are as good as without this one
        traceback.print_exc()
        answer, lives = {"why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}, False
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    return answer | {"seconds": time.monotonic() - begin}, lives


def steps(config: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """The rows of `python -m urepa.bench`."""
    return {"rows": bench.run(config)}


def memory(config: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """The peak that `python -m urepa.plan` predicts for the config, beside the measured one of an earlier run of it."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    planned = plan(config, Device(kind, kind, None, None)).peak_bytes
    predicted: dict[str, Any] = {"planned_peak_bytes": planned}
    if kind == "cpu":
        return predicted | {"why": NO_GPU}
    if not rows:
        return predicted | {"why": "the run that it belongs to has no figure"}
    (row,) = rows.values()
    peak = row["peak_memory_bytes"]
    return predicted | {"peak_memory_bytes": peak, "of_plan": peak / planned}


def waits(config: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """Whether an update waits for the device."""
    accelerator = accelerate_for(config["trainer"])
    with tempfile.TemporaryDirectory(dir=config["bench"]["folder"]) as place:
        trainer = BenchLoops(config, Path(place), accelerator).trainer
        count = WARM_UP + 4
        try:
            losses = losses_without_waiting(trainer, count)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return {"steps": count, "waits": True, "where": where(error)}
        finally:
            trainer.reader.cache.close()
    watched = {"waits": False} if accelerator.device.type == "cuda" else {"why": NO_GPU}
    return {"steps": count, "losses": losses} | watched


def where(error: BaseException) -> str:
    """The last line of this project, or else of any code, in an error's traceback."""
    frames = list(traceback.extract_tb(error.__traceback__))
    own = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}: {last.line}"


def tokens(config: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """Samples per second from the stores to the device: only tokens, read by one thread, and whole batches as the
    reader makes them, beside the rates that the steps of earlier runs need. The stores were just written, so they are
    in the page cache."""
    device = accelerate_for(config["trainer"]).device
    settings, size = config["bench"], config["trainer"]["batch_size"]
    track, teacher = build_part(config["data"]), build_part(config["teacher"])
    with tempfile.TemporaryDirectory(dir=settings["folder"]) as place:
        random = SyntheticTrack(**settings_like(track, Path(place), settings["batches"] * size))
        random.write(teacher)
        cache = random.open(teacher)
        reader = TrainingReader(cache, build_part(config["objective"]), Layout(size), 0)
        count = settings["steps"] * settings["rounds"]
        alone, whole = _tokens_per_s(cache, size, count, device), _samples_per_s(reader, size, count, device)
        record = cache.tokens[ALONE].record_bytes
        cache.close()
    needed = {name: row["images_per_s"] for name, row in rows.items()}
    return {
        "tokens_samples_per_s": alone,
        "tokens_gb_per_s": alone * record / 1e9,
        "reader_samples_per_s": whole,
        "needed_samples_per_s": needed,
        "tokens_of_needed": {name: alone / rate for name, rate in needed.items()},
        "reader_of_needed": {name: whole / rate for name, rate in needed.items()},
    }


def _tokens_per_s(cache: Any, size: int, count: int, device: torch.device) -> float:
    store, samples = cache.tokens[ALONE], cache.splits["train"]
    slots = [Slot(size, {ALONE: store.record_bytes}) for _ in range(2)]
    keys = [samples[i].key for i in range(len(samples))]
    groups = [keys[i : i + size] for i in range(0, len(keys), size)]

    def go(step: int) -> torch.Tensor:
        slot = slots[step % 2]
        slot.wait()
        moved: torch.Tensor = store.tensor(
            groups[step % len(groups)], slot.rows(0, size, {ALONE: store.record_bytes})[ALONE]
        ).to(device, non_blocking=True)
        if device.type == "cuda":
            slot.copied = torch.cuda.Event()
            slot.copied.record()
        return moved

    go(0)
    _wait(device)
    begin = time.perf_counter()
    for step in range(count):
        go(step)
    _wait(device)
    return count * size / (time.perf_counter() - begin)


def _samples_per_s(reader: TrainingReader, size: int, count: int, device: torch.device) -> float:
    ahead = 4  # batches that are there before the first is asked for
    begin = 0.0
    for step, batches in enumerate(reader.stream(0, ahead + count)):
        if step == ahead:
            _wait(device)
            begin = time.perf_counter()
        for batch in batches:
            batch.to(device)
    _wait(device)
    return count * size / (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


KINDS = {"steps": steps, "memory": memory, "waits": waits, "tokens": tokens}
