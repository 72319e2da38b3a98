"""Benchmarks of a training step on one H100 or H200, in under 8 minutes: `python tests/gpu/bench_gpu.py [--dry-run]
[FOLDER]`.

Random weights and data; nothing is downloaded. Track A's step: alone, beside the description's loop, beside one with an
online teacher, and with each speed switch changed; SiT-XL/2 with REPA beside a step with an online DINOv2-B; peak
memory beside the plan's; whether a step waits for the device, and whether tokens are read fast enough. FOLDER gets
bench.json, which `python -m urepa.plan measured=FILE` reads, and bench.md. --dry-run: the same with tiny sizes on a
CPU.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the checkout, installed or not, here and in the processes below

from bench_tables import markdown  # noqa: E402  after the checkout is found

from urepa.core.files import write_whole  # noqa: E402

BUDGET = 460.0  # seconds; what has not begun by then is not measured
LEAST = 20.0  # seconds that must be left for another run
TRACK_A = ("+experiment=track_a", "backbone.weights=random")
SIT = ("+experiment=repa_imagenet256",)
ROUNDS = ("bench.steps=5", "bench.rounds=3", "bench.batches=4")
FULL, QUARTER, SIT_XL = "full objective", "diffusion_fraction=0.25", "SiT-XL/2 with REPA"
NO_DRY_RUN = {"compiled blocks": "a dry run compiles nothing, which takes minutes on a CPU"}

TINY = (
    *("trainer.batch_size=4", "trainer.validation_group=4", "trainer.threads=1", "teacher=dinov2_s"),
    *("teacher.image_size=56", "teacher.grid=[4,4]"),
)
TINY_TIMES = ("bench.steps=1", "bench.rounds=1", "bench.batches=2", "bench.workers=1")
TINY_TRACK_A = (
    *("+experiment=track_a", "backbone=tiny_unet", "backbone.block_out_channels=[32,64]"),
    *("backbone.attention=[false,true]", "backbone.cross_attention_dim=32", "data.latent_shape=[4,8,8]", *TINY),
)
TINY_SIT = (
    *(*SIT, "backbone.depth=8", "backbone.width=32", "backbone.heads=2", "head.hidden=16"),
    *("data.latent_shape=[4,8,8]", *TINY),
)


@dataclass(frozen=True)
class Run:
    """One result or several of one process. `of`: the runs whose rows of this project's loop are passed to it."""

    name: str
    more: tuple[str, ...] = ()
    kind: str = "steps"
    model: str = "track_a"
    of: tuple[str, ...] = ()
    seconds: float = 90.0

    def overrides(self, dry: bool) -> list[str]:
        base = {"track_a": (TRACK_A, TINY_TRACK_A), "sit": (SIT, TINY_SIT)}[self.model][dry]
        return [*base, *(TINY_TIMES if dry else ROUNDS), *self.more]


RUNS = (  # the most important ones first
    Run(FULL, seconds=150),  # libraries are loaded in it
    Run(QUARTER, ("loss.diffusion_fraction=0.25",)),
    Run("beside the description's loop", ("bench.against=documented",), seconds=120),
    Run(SIT_XL, ("bench.against=online",), model="sit", seconds=120),
    Run("waiting for the device", kind="waits"),
    Run(f"memory, {FULL}", kind="memory", of=(FULL,)),
    Run(f"memory, {SIT_XL}", kind="memory", model="sit", of=(SIT_XL,)),
    Run(f"memory, {QUARTER}", ("loss.diffusion_fraction=0.25",), kind="memory", of=(QUARTER,)),
    Run("reading", kind="tokens", of=(FULL, QUARTER)),
    Run("beside an online teacher", ("bench.against=online",)),
    Run("diffusion_fraction=0", ("loss.diffusion_fraction=0",)),
    Run("frozen weights in fp32", ("trainer.frozen=fp32",)),
    Run("without channels_last", ("trainer.channels_last=false",)),
    Run("cuDNN attention first", ("trainer.attention=cudnn",)),
    Run("flash attention first", ("trainer.attention=flash",)),
    Run("memory-efficient attention first", ("trainer.attention=efficient",)),
    Run("compiled blocks", ("trainer.compile=true",), seconds=150),
)


class Worker:
    """A process that does one run after the other, so that libraries are loaded once. If it is killed, fails or takes
    too long, only that run is lost: the next run gets another process."""

    def __init__(self) -> None:
        self.process: Any = None
        self.connection: Any = None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The run's result, or why there is none."""
        if self.process is None:
            self._start()
        try:
            self.connection.send(request)
            if self.connection.poll(seconds):
                answer, lives = self.connection.recv()
                if not lives:
                    self.stop()
                return dict(answer)
            why = f"it took longer than {seconds:.0f} s"
        except (EOFError, ConnectionError):
            self.process.join(10)
            why = f"its process ended with exit code {self.process.exitcode}"
        self.stop()
        return {"why": why}

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _serve(connection: Any) -> None:
    from gpu_runs import serve

    serve(connection)


def main(folder: Path, dry: bool = False) -> None:
    """Does all runs, and writes both files after each, so that results are kept if a later run fails."""
    folder.mkdir(parents=True, exist_ok=True)
    begin, done, worker = time.monotonic(), {}, Worker()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".stores-") as stores:
        try:
            for run in RUNS:
                left = BUDGET - (time.monotonic() - begin)
                done[run.name] = _measured(run, worker, done, dry, left, stores)
                write_whole(folder / "bench.json", json.dumps(done, indent=1))
                write_whole(folder / "bench.md", markdown(done))
                print(f"{time.monotonic() - begin:5.0f} s  {run.name}: {done[run.name].get('why', 'done')}", flush=True)
        finally:
            worker.stop()
    print((folder / "bench.md").read_text())


def _measured(
    run: Run, worker: Worker, done: dict[str, dict[str, Any]], dry: bool, left: float, stores: str
) -> dict[str, Any]:
    command = run.overrides(dry)
    about = {"kind": run.kind, "overrides": command}
    if dry and run.name in NO_DRY_RUN:
        return about | {"why": NO_DRY_RUN[run.name]}
    if left < LEAST:
        return about | {"why": f"no time was left of {BUDGET:.0f} s"}
    own = {name: row for name in run.of for row in done[name].get("rows", []) if row["path"] == "urepa"}
    request = {"kind": run.kind, "overrides": [*command, f"bench.folder={stores}"], "rows": own}
    return about | worker.ask(request, min(run.seconds, left))


if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:] if argument != "--dry-run"]
    main(Path(names[0] if names else "bench_gpu"), dry="--dry-run" in sys.argv[1:])
