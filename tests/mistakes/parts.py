"""The contents of a user's folder before a mistake is made: caches, a finished run, images, an export, damaged
files."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

TINY = (
    "data.root=data",
    "data.limit=40",
    "data.validation_images=20",
    "data.test_images=20",
    "data.image_size=16",
    "teacher.image_size=64",
    "teacher.grid=[2,2]",
    "backbone.block_out_channels=[32,32]",
    "backbone.attention=[false,true]",
    "head.depth=1",
    "backbone.cross_attention_dim=32",
    "trainer.batch_size=8",
    "trainer.validation_group=10",
    "trainer.max_steps=2",
    "trainer.threads=1",
    "loss.warmup_steps=1",
    "evaluation=none",
    "tracking=none",
)
RUN = "outputs/tiny/seed0"
STORE = "data/digits-*"
HERE = f"hydra.run.dir={RUN}"


def write(path: str, text: str | bytes) -> Callable[[Path], None]:
    """Writes a file; if a pattern is given, in place of the one file that it matches."""

    def change(here: Path) -> None:
        file = here / path if "*" not in path else next(iter(sorted(here.glob(path))))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def remove(path: str) -> Callable[[Path], None]:
    """Removes files or folders."""

    def change(here: Path) -> None:
        for found in here.glob(path):
            shutil.rmtree(found) if found.is_dir() else found.unlink()

    return change


def cut(path: str, size: int) -> Callable[[Path], None]:
    """Truncates a file to so many bytes."""

    def change(here: Path) -> None:
        for found in here.glob(path):
            with open(found, "r+b") as file:
                file.truncate(size)

    return change


def edit(path: str, **changes: object) -> Callable[[Path], None]:
    """Changes keys of a JSON file; None removes a key."""

    def change(here: Path) -> None:
        for found in here.glob(path):
            known = json.loads(found.read_text()) | changes
            found.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))

    return change


def closed(path: str) -> Callable[[Path], None]:
    """Makes a folder read-only, with everything in it."""

    def change(here: Path) -> None:
        for found in (here / path, *(here / path).rglob("*")):
            found.chmod(0o555 if found.is_dir() else 0o444)

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    """Applies one change after the other."""

    def change(here: Path) -> None:
        for one in changes:
            one(here)

    return change


CONFIG, SUMMARY, STEP = f"{RUN}/config.yaml", f"{RUN}/summary.json", f"{RUN}/checkpoints/step_00000002"
PICKLE = pickle.dumps({"x": Path("x")})
FOREIGN = "model:\n  name: resnet\nepochs: 3\n"
FILE = write("file", "x")
