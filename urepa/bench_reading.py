"""`python -m urepa.bench_reading`: measures how fast tokens and latents are read, as ratios within one run.

The reader is compared with the description's loader (docs/data.md: LMDB get per item, 8 workers, readahead off), with
plain preadv of the same bytes, and with itself without the crc32 check of each record; warm and cold. The stores are
made for this purpose with the description's record sizes. The cost of the check is also given as a share of a core.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.ranges import check_numbers
from urepa.core.errors import UserError
from urepa.core.files import check_file_target, check_folder, write_whole
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import to_plain

RECORDS = {"tokens": (256, 1024), "latents": (4, 64, 64)}
MOST_PER_S = 2900  # samples per second of one GPU if a step stops after the mid block
COMPARED = {"of_preadv": "preadv", "of_documented": "documented", "of_unchecked": "unchecked"}


@hydra.main(config_path=CONF, config_name="bench_reading", version_base="1.3")
def main(config: DictConfig) -> None:
    """Prints a table; with `out=FILE` also writes it as JSON."""
    with one_line_mistakes():
        settings = to_plain(config)
        check_numbers(settings)
        if settings["samples"] <= settings["batch_size"]:
            raise UserError(
                f"samples={settings['samples']} is not larger than batch_size={settings['batch_size']}, and the first "
                "batch is not timed; give more samples"
            )
        check_folder("folder", Path(settings["folder"]))
        if settings["out"] is not None:
            check_file_target("out", Path(settings["out"]))
        rows, costs = [], []
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as place:
            for kind in RECORDS:
                rows += reading_rates(kind, Path(place) / kind, settings)
                costs.append(crc32_cost(kind))
        titles = f"{'of plain preadv':>17}{'of documented':>15}{'of unchecked':>14}"
        print(f"{'records':<9}{'cache':<7}{'reader':<12}{'records/s':>11}{titles}")
        for r in rows:
            ratios = f"{r['of_preadv']:>17.2f}{r['of_documented']:>15.2f}{r['of_unchecked']:>14.2f}"
            print(f"{r['records']:<9}{r['cache']:<7}{r['reader']:<12}{r['per_s']:>11.0f}{ratios}")
        for c in costs:
            share = f"{c['core']:.2f} of a core at {MOST_PER_S} records/s"
            print(f"crc32 of {c['records']}: {c['bytes']} bytes a record, {c['gb_per_s']:.2f} GB/s, {share}")
        if settings["out"] is not None:
            write_whole(Path(settings["out"]), json.dumps({"reading": rows, "crc32": costs}, indent=1))


def crc32_cost(kind: str) -> dict[str, Any]:
    """The processor time for the crc32 of a record, which other work on the machine hardly affects."""
    import numpy as np

    from urepa.data.stores.record_format import encode

    content = encode(np.random.default_rng(0).standard_normal(RECORDS[kind], dtype=np.float32), "float16")
    times = []
    for _ in range(20):
        begin = time.thread_time()
        for _ in range(20):
            zlib.crc32(content)
        times.append((time.thread_time() - begin) / 20)
    seconds = sorted(times)[len(times) // 2]
    size = len(content)
    return {"records": kind, "bytes": size, "gb_per_s": size / seconds / 1e9, "core": seconds * MOST_PER_S}


def reading_rates(kind: str, folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Measures the readers on one store. Each round reads every record once, in a new order."""
    import numpy as np

    from urepa.data.stores.lmdb_store import write_store
    from urepa.data.stores.record_reading import Store

    rng = np.random.default_rng(0)
    keys = [f"n{i:08d}" for i in range(settings["samples"])]
    write_store(folder, ((k, rng.standard_normal(RECORDS[kind], dtype=np.float32)) for k in keys), {})
    without = {key: value for key, value in Store(folder).manifest.items() if key != "digests_sha256"}
    readers: dict[str, Callable[[list[list[str]]], Generator[None]]] = {
        "preadv": partial(plain_preadv, folder),
        "documented": partial(description_loader, folder, RECORDS[kind], settings["workers"]),
        "unchecked": partial(training_reader, lambda: Store(folder, without)),
        "urepa": partial(training_reader, lambda: Store(folder)),
    }
    rows = []
    for cache in ("warm", "cold"):
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(settings["rounds"]):
            order = rng.permutation(len(keys))
            size = settings["batch_size"]
            batches = [[keys[i] for i in order[at : at + size]] for at in range(0, len(keys), size)]
            for name, read in readers.items():
                run = read(batches)
                next(run)  # opens everything, starts the workers and reads the first batch
                drop_from_page_cache(folder) if cache == "cold" else list(plain_preadv(folder, batches))
                begin = time.perf_counter()
                list(run)
                seconds[name].append(time.perf_counter() - begin)
        read_later = len(keys) - settings["batch_size"]
        rate = {name: read_later / sorted(s)[len(s) // 2] for name, s in seconds.items()}
        rows += [
            {"records": kind, "cache": cache, "reader": name, "per_s": per_s}
            | {key: per_s / rate[other] for key, other in COMPARED.items()}
            for name, per_s in rate.items()
        ]
    return rows


def drop_from_page_cache(folder: Path) -> None:
    """Drops the store's file from the page cache."""
    handle = os.open(folder / "data.mdb", os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def training_reader(opened: Callable[[], Any], batches: list[list[str]]) -> Generator[None]:
    """Reads like the training reader: threads fill preallocated memory from the store that `opened` returns."""
    from concurrent.futures import ThreadPoolExecutor

    from urepa.data.reader import AHEAD, THREADS, Slot

    store = opened()
    sizes = {"": store.record_bytes}
    slots = [Slot(len(batches[0]), sizes) for _ in range(AHEAD + 1)]
    with ThreadPoolExecutor(THREADS) as pool:
        for slot in slots:  # training writes to this memory for the first time in its first steps
            store.tensor(batches[0], slot.rows(0, len(batches[0]), sizes)[""])
        yield
        ahead: list[Future] = []
        for i, keys in enumerate(batches[1:]):
            if len(ahead) == AHEAD:
                ahead.pop(0).result()
            memory = slots[i % len(slots)].rows(0, len(keys), sizes)[""]
            ahead.append(pool.submit(store.tensor, keys, memory))
        for future in ahead:
            future.result()
    store.close()


def plain_preadv(folder: Path, batches: list[list[str]]) -> Generator[None]:
    """Reads the same bytes at the same offsets with one thread into one buffer: the limit of disk and memory."""
    import numpy as np

    from urepa.data.stores.record_reading import Store

    store = Store(folder)
    raw = np.empty((len(batches[0]), store.record_bytes), dtype=np.uint8)
    places = [(file, offset) for batch in batches for file, offset, _ in store.places(batch).tolist()]
    raw[:] = 0
    yield
    for i, (file, offset) in enumerate(places[len(batches[0]) :]):
        os.preadv(file, [raw[i % len(raw)].data], offset)
    store.close()


def description_loader(folder: Path, shape: tuple[int, ...], workers: int, batches: list[list[str]]) -> Generator[None]:
    """Reads with the description's loader from one store."""
    from urepa.costs.benchmark.description_loop import loader

    keys = [key for batch in batches for key in batch]
    running = iter(loader([(folder, keys, shape)], len(batches[0]), workers, shuffle=False))
    next(running)
    yield
    for _ in running:
        pass


if __name__ == "__main__":
    prepare()
    run_command(main, "bench_reading")
