"""Checkpoints: trainables, EMA and optimiser as safetensors, written whole or not at all, newest valid wins.

Layout: checkpoints/step_00000600/{weights,ema,optimizer}.safetensors, config.yaml, state.json. state.json is
written last inside a temporary folder, holds every file's SHA-256, and the folder is renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from urepa.errors import UserError
from urepa.files import sync_folder, write_whole

NAME = re.compile(r"step_(\d{8})")
PARTS = ("weights", "ema", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """One of weights, ema, optimizer, on the CPU."""
        return load_file(self.folder / f"{part}.safetensors")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: str) -> None:
    """Writes `folder/step_...`. A full disk is a UserError and leaves the earlier checkpoints alone."""
    folder.mkdir(exist_ok=True)
    for stale in folder.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        temporary.mkdir()
        for part in PARTS:
            path = temporary / f"{part}.safetensors"
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors[part].items()}, path)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        write_whole(temporary / "config.yaml", config)
        files = {p.name: _digest(p) for p in sorted(temporary.iterdir())}
        write_whole(temporary / "state.json", json.dumps(state | {"step": step, "files": files}, indent=1))
        if final.exists():  # a damaged one that was skipped when resuming
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync_folder(folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or "No space left" in str(error):  # safetensors has its own error type
            raise UserError(
                f"the checkpoint of step {step} could not be written to {folder} ({error}); "
                "free some space and run the same command again: it resumes from the last one"
            ) from error
        raise


def _open(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; OSError, ValueError or KeyError if it is not whole."""
    state = json.loads((folder / "state.json").read_text())
    for name, digest in state["files"].items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} has changed since it was written")
    return Checkpoint(folder, int(state["step"]), state)


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders, newest first, valid or not."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name))]
    return sorted(found, reverse=True)


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint; damaged ones are skipped with a warning."""
    for _, path in steps(folder):
        try:
            return _open(path)
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"skipping the damaged checkpoint {path}: {error}", stacklevel=2)
    return None


def require(run: Path) -> Checkpoint:
    """A run's newest valid checkpoint, or a UserError."""
    found = newest(run / "checkpoints")
    if found is None:
        raise UserError(f"{run} has no valid checkpoint; give the folder of a run that has saved one")
    return found


def prune(folder: Path, newest_step: int, keep_last: int, best_step: int | None) -> None:
    """Keeps the last `keep_last` up to `newest_step`, and the best. Later ones were damaged and skipped when
    resuming: they count for nothing, and this run comes to write them anew."""
    for rank, (step, path) in enumerate((s, p) for s, p in steps(folder) if s <= newest_step):
        if rank >= keep_last and step != best_step:
            # renamed first, so that a kill in between leaves no half-deleted folder that looks whole
            doomed = folder / f".{path.name}.tmp"
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def load_named(into: dict[str, Any], tensors: dict[str, Tensor], where: str) -> None:
    """Copies tensors into parameters of the same names and shapes; a UserError names what does not fit."""
    odd = sorted(into.keys() ^ tensors.keys()) + sorted(
        k for k in into.keys() & tensors.keys() if into[k].shape != tensors[k].shape
    )
    if odd:
        some = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
        raise UserError(
            f"the weights in {where} do not fit this run: {len(odd)} differ by name or shape ({some}); "
            "compose the same backbone, lora and head as there"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            into[name].copy_(tensor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Adam's state by parameter name: `exp_avg/<name>` and so on."""
    return {
        f"{key}/{name}": value for name, p in parameters.items() for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    for label, value in tensors.items():
        key, name = label.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)
