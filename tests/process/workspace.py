"""A working folder in which real training processes run, and the checks of the runs that they leave there."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forks import HANGS as HANGS
from forks import Forked, environment, forks, run

from urepa.runs.metrics import TIMINGS, read_rows

TRAIN_WITH = str(Path(__file__).with_name("train_with.py"))
PARTS = ("weights", "ema", "optimizer")
WORLD = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
TINY = (
    "backbone.block_out_channels=[32,32,32]",
    "backbone.cross_attention_dim=32",
    "head.depth=1",
    "loss.warmup_steps=4",
    "trainer.max_steps=12",
    "trainer.batch_size=8",
    "trainer.log_every=2",
    "trainer.validate_every=4",
    "trainer.validation_group=10",
    "trainer.checkpoint_every=3",
    "trainer.threads=1",
    "evaluation=none",
)
# the same caches and length, of REPA on a SiT: 4x16x16 pixel-unshuffled digits as 4x4 patches, a token for each
TINY_SIT = (
    "+experiment=repa_cifar10_pixels",
    "data=digits",
    "teacher=efficientnet_lite0",
    "backbone.depth=4",
    "backbone.width=64",
    "backbone.heads=2",
    "head.hidden=32",
    *(o for o in TINY if not o.startswith(("backbone.", "head.", "loss."))),
)
CACHE = ("data.limit=100", "data.validation_images=20", "data.test_images=20")
EVALUATED = (
    "evaluation=digits",
    "evaluation.samples.per_class=1",
    "evaluation.samples.sampler_steps=2",
    "evaluation.samples.knn=1",
)


def ended(
    what: list[str], folder: Path, timeout: float = HANGS, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs `python WHAT` in a folder to its end: as a fork of a process that has imported everything, or with `fresh`
    as a new process like a user's."""
    if fresh:
        command = [sys.executable, *what]
        return subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
    return run(what, folder, timeout)


def make_cache(folder: Path) -> None:
    """The caches of the tiny configuration, made by the preprocess command."""
    run(["-m", "urepa.preprocess", *CACHE, f"data.root={folder}"], folder).check_returncode()


def start(what: list[str], folder: Path, out: Path, err: Path, **variables: str) -> Forked:
    """The same, begun. What it says goes to two files."""
    return forks().start(what, folder, environment() | variables, out, err)


class Workspace:
    """One folder with `outputs/` and `mlflow.db`, like a user's."""

    def __init__(self, folder: Path, cache: Path, tiny: tuple[str, ...] = TINY) -> None:
        self.folder, self.cache, self.tiny = folder, cache, tiny
        self.db = folder / "mlflow.db"

    def overrides(self, *more: str) -> list[str]:
        """The tiny configuration, with `more` added (the last value of a key applies). A store on a busy machine has
        all the time that a test has."""
        patience = () if any(o.startswith("tracking=") for o in more) else (f"tracking.patience={HANGS}",)
        every = [*self.tiny, *CACHE, f"data.root={self.cache}", *patience, *more]
        last = {o.lstrip("+").partition("=")[0]: o for o in every}
        return list(last.values())

    def command(self, *overrides: str, arranged: tuple[str, ...] = (), ranks: int = 1) -> list[str]:
        """`-m urepa.train OVERRIDES`, with the preparations of train_with.py or under torchrun if requested."""
        what = [TRAIN_WITH, *arranged, "--"] if arranged else ["-m", "urepa.train"]
        if ranks > 1:
            what = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *what]
        return [*what, *overrides]

    def train(
        self,
        *more: str,
        arranged: tuple[str, ...] = (),
        ranks: int = 1,
        code: int | None = 0,
        bare: bool = False,
        fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs training to its end and checks the exit code (None: any). `bare`: only the given overrides. Several
        ranks are forks with torchrun's variables; `fresh`: torchrun itself starts them."""
        overrides = list(more) if bare else self.overrides(*more)
        command = self.command(*overrides, arranged=arranged, ranks=ranks if fresh else 1)
        done = self.in_ranks(command, ranks) if ranks > 1 and not fresh else ended(command, self.folder, fresh=fresh)
        said = f"\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
        assert code is None or done.returncode == code, f"exit code {done.returncode}, not {code}{said}"
        for word in ("terminate called", "core dumped", "Fatal Python error"):
            assert word not in done.stderr, said
        return done

    def in_ranks(self, command: list[str], count: int) -> subprocess.CompletedProcess[str]:
        """Runs the command in as many ranks until all have ended; the exit code is that of the first rank that
        failed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | dict.fromkeys(WORLD, str(count))
        processes, files = [], []
        for rank in map(str, range(count)):
            out, err = (self.folder / f"{name}_of_rank_{rank}.txt" for name in ("stdout", "stderr"))
            files.append((out, err))
            processes.append(start(command, self.folder, out, err, RANK=rank, LOCAL_RANK=rank, **same))
        codes = [process.wait(HANGS) for process in processes]
        said = ("".join(file.read_text() for file in side) for side in zip(*files, strict=True))
        return subprocess.CompletedProcess(command, next(filter(None, codes), 0), *said)

    def start(self, *more: str, arranged: tuple[str, ...] = (), **variables: str) -> Forked:
        """Starts it, with more environment variables; what it says goes to files beside outputs/."""
        command = self.command(*self.overrides(*more), arranged=arranged)
        out, err = (self.folder / name for name in ("stdout.txt", "stderr.txt"))
        return start(command, self.folder, out, err, **variables)

    def runs(self) -> list[Path]:
        """The folders of all runs here."""
        return sorted(p.parent for p in self.folder.glob("outputs/*/seed*/config.yaml"))

    @property
    def run(self) -> Path:
        """The one run's folder."""
        (folder,) = self.runs()
        return folder


def one_line_error(done: subprocess.CompletedProcess[str]) -> str:
    """The text of the only `error: ...` line; there is no traceback and no other error message."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip().endswith(lines[0]), f"the last word is not the error: {done.stderr}"
    return lines[0].removeprefix("error: ")


def steps(run: Path) -> list[int]:
    """The steps of the existing checkpoints."""
    return sorted(int(p.name.removeprefix("step_")) for p in run.glob("checkpoints/step_*"))


def last_checkpoint(run: Path) -> Path:
    """The newest checkpoint's folder."""
    return run / "checkpoints" / f"step_{steps(run)[-1]:08d}"


def without_timings(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times and rates. Fails on an incomplete line."""
    path = run / "metrics.jsonl"
    rows = read_rows(path)
    assert len(rows) == len(path.read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def assert_same_run(run: Path, reference: Path) -> None:
    """The same end, and the same checkpoints kept before it."""
    assert steps(run) == steps(reference)
    for step in steps(run):
        assert_same_checkpoint(run, reference, step)
    assert_same_end(run, reference)


def assert_same_end(run: Path, reference: Path) -> None:
    """Weights, EMA and optimiser bit for bit; metrics except for times and rates. A stop by a signal shortly before the
    end leaves its own checkpoint beside the last."""
    assert without_timings(run) == without_timings(reference)
    assert steps(run)[-1] == steps(reference)[-1]
    assert_same_checkpoint(run, reference, steps(run)[-1])
    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, reference))
    assert (ours["step"], ours["best"]) == (theirs["step"], theirs["best"])
    leftovers = [p.name for p in run.rglob(".*") if p.name != ".lock"]
    assert not leftovers, leftovers


def assert_same_checkpoint(run: Path, reference: Path, step: int) -> None:
    for part in PARTS:
        file = f"checkpoints/step_{step:08d}/{part}.safetensors"
        assert (run / file).read_bytes() == (reference / file).read_bytes(), f"{file} differs"


def trained(work: Workspace) -> list[Path]:
    """The runs that have logged a step."""
    return [f for f in work.folder.glob("outputs/*/seed*/metrics.jsonl") if f.stat().st_size]


def query(db: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of a sqlite file, read while others write to it."""
    connection = sqlite3.connect(f"file:{db}?mode=ro", uri=True, timeout=30)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def assert_tracked_once(db: Path, run: Path) -> str:
    """Every metric of every row is in MLflow's database exactly once with its value, and nothing else is. Returns the
    MLflow run's id."""
    (cursor,) = json.loads((run / "mlflow.json").read_text()).values()
    run_id = str(cursor["run_id"])
    sql = "select key, step, value, is_nan from metrics where run_uuid = ?"
    points = query(db, sql, run_id)
    there = sorted((key, step) for key, step, *_ in points)
    rows = read_rows(run / "metrics.jsonl")
    here = sorted((k, row["step"]) for row in rows for k in row if k not in ("step", "time"))
    assert there == here, f"more than rows: {Counter(there) - Counter(here)}; less: {Counter(here) - Counter(there)}"
    values = {(key, step): float("nan") if is_nan else value for key, step, value, is_nan in points}
    for row in rows:
        for key in row.keys() - {"step", *TIMINGS}:
            value, sent = float(row[key]), values[key, row["step"]]
            assert value == sent or (value != value and sent != sent), (key, row["step"], value, sent)
    folders = query(db, "select run_uuid from tags where key = 'folder' and value like ?", f"%{run.name}")
    named = query(db, "select run_uuid from tags where key = 'urepa.key' and value = ?", cursor["key"])
    assert named == [(run_id,)]
    assert (run_id,) in folders
    return run_id


def wait_for(
    condition: Callable[[], object], process: Forked | subprocess.Popen[str] | None = None, what: str = "it"
) -> None:
    """Waits until the condition holds. Fails if the process ends before, or after a very long time."""
    end = time.monotonic() + HANGS
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended or condition(), f"the process ended with {process and process.returncode} before {what}"
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.01)
