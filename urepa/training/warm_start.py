"""Warm start: a new run whose parameters are copied from a checkpoint of another run.

The record of the weights (`urepa.training.warm_start_record`) is written before the first step, and their file is read
once. A run that resumes reads its own checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.models.weight_files import read_safetensors, read_torch
from urepa.runs import checkpoint
from urepa.runs.summary import read_summary
from urepa.training.warm_start_record import FILE, in_words, read_note

EMA = "ema.safetensors"  # of a run's checkpoint
SHOWN = 5  # names in a message


def find(source: str) -> dict[str, Any]:
    """The record of a run's newest checkpoint, or of a file of weights, at this moment. Raises UserError if there is
    none."""
    path = Path(source)
    if path.is_file():
        return {"folder": source, "step": None, "file": str(path), "sha256": _digest(path)}
    found = checkpoint.require(path)
    return {
        "folder": source,
        "step": found.step,
        "file": str(found.folder / EMA),
        "sha256": found.state["files"][EMA],  # of the file as it is, which `require` has checked
    }


def note(folder: Path, source: str) -> None:
    """Records what a new run in `folder` starts from. Raises UserError if the run began from other weights before; it
    has no checkpoint yet."""
    now, before = find(source), read_note(folder)
    if before is not None and before.get("sha256", now["sha256"]) != now["sha256"]:
        raise UserError(
            f"{folder} holds a run that began from other weights of {source} ({in_words(before)}; now "
            f"{in_words(now)}); move that folder away"
        )
    write_whole(folder / FILE, json.dumps(now))


def load(parameters: Mapping[str, nn.Parameter], settings: dict[str, Any], folder: Path) -> str:
    """Copies the weights recorded in `folder` into the parameters of the same name and shape.

    Args:
        parameters: what trains, by name.
        settings: the config's `warm_start`.

    Returns what was copied, as a sentence. Raises UserError, without changing a parameter, if names or shapes differ
    that the allow-lists do not name, or if a pattern matches no difference.
    """
    known = read_note(folder)
    assert known is not None, "it is written when the run takes its folder"
    tensors = read_weights(Path(known["file"]), known["sha256"])
    missing = sorted(parameters.keys() - tensors.keys())
    unused = sorted(tensors.keys() - parameters.keys())
    both = parameters.keys() & tensors.keys()
    shape = sorted(k for k in both if parameters[k].shape != tensors[k].shape)
    refused = [
        *_refused("allow_missing", "missing there", missing, settings),
        *_refused("allow_unused", "without a place here", unused, settings),
        *_refused("allow_shape", "of another shape", shape, settings),
    ]
    if refused:
        raise UserError(
            f"the weights in {known['file']} do not fit this run: {'; '.join(refused)}. Compose the same backbone, "
            "lora, head and data (channels, classes) as there, or allow what may differ"
        )
    with torch.no_grad():
        for name in both - set(shape):
            parameters[name].copy_(tensors[name])
    return f"starting from {in_words(known)}: {len(both) - len(shape)} parameters copied" + "".join(
        f"; {len(names)} {what} ({_some(names)})"
        for what, names in (("new", missing), ("of another shape, new", shape), ("left out", unused))
        if names
    )


def first_row(trainer: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The validation before the first update, and the jump of its diffusion loss from that of the source, where this is
    a run with such a loss: the context has tokens that the source did not have, for example."""
    row: dict[str, Any] = trainer.validate(0)
    summary = read_summary(Path(settings["checkpoint"]))
    before = None if summary is None else summary["metrics"].get("val/diffusion")
    beside = "" if before is None else f"; that of {settings['checkpoint']} at its end is {float(before):.4f}"
    trainer.accelerator.print(f"step 0: the validation diffusion loss is {row['val/diffusion']:.4f}{beside}")
    return row


def _refused(key: str, what: str, names: list[str], settings: dict[str, Any]) -> list[str]:
    """What is wrong with the names that differ in one way: those that no pattern allows, and patterns that match
    none."""
    patterns = settings[key]
    idle = [pattern for pattern in patterns if not _matching(names, pattern)]
    rest = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    found = [f"{len(rest)} {what} ({_some(rest)}; warm_start.{key} has no pattern for them)"] if rest else []
    return [*found, *(f"warm_start.{key}: {pattern} matches no parameter that is {what}" for pattern in idle)]


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def read_weights(file: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises UserError if it is not the file that was recorded, or no such file."""
    if not file.is_file() or _digest(file) != digest:
        raise UserError(f"{file} changed while this run was starting; run the same command again")
    tensors = read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{file} is not a mapping of parameter names to tensors; save it as one")
    return tensors


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
