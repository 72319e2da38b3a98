"""Checkpoints: trainable weights, EMA and optimiser state as safetensors. They are written atomically.

Layout: checkpoints/step_00000600/{weights,ema,optimizer}.safetensors, config.yaml, state.json. The files are written to
a temporary folder, which is then renamed. state.json is written last and has the SHA-256 of every file and its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.files import sync_folder, write_whole
from urepa.core.shards import copy_into, part_like
from urepa.runs.checkpoint_folders import no_checkpoint, steps

PARTS = ("weights", "ema", "optimizer")
FILES = {f"{part}.safetensors" for part in PARTS} | {"config.yaml"}
OWN_DIGEST = "sha256"  # digest of all other entries of state.json


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part (weights, ema or optimizer), on the CPU."""
        return load_file(self.folder / f"{part}.safetensors")


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(state: dict[str, Any]) -> str:
    """SHA-256 of a state without its digest, as JSON with sorted keys. The file's formatting does not matter."""
    stated = {key: value for key, value in state.items() if key != OWN_DIGEST}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process was writing or removing. Only the owner of the run may call this."""
    for stale in folder.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: str) -> None:
    """Writes `folder/step_...`. Raises UserError if the disk is full; earlier checkpoints are not affected."""
    folder.mkdir(exist_ok=True)
    remove_unfinished(folder)
    final = folder / _name(step)
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
        stated: dict[str, Any] = json.loads(json.dumps(state | {"step": step, "files": files}))
        write_whole(temporary / "state.json", json.dumps(stated | {OWN_DIGEST: _own_digest(stated)}, indent=1))
        if final.exists():  # a damaged checkpoint that was skipped when resuming
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
    """The checkpoint in `folder`. Raises OSError or ValueError if it is incomplete or damaged."""
    state = json.loads((folder / "state.json").read_text())
    if not isinstance(state, dict):
        raise ValueError("state.json is not a JSON object")
    if OWN_DIGEST in state and state[OWN_DIGEST] != _own_digest(state):  # earlier versions wrote no digest
        raise ValueError("state.json has changed since it was written")
    step, files = state.get("step"), state.get("files")
    if type(step) is not int or folder.name != _name(step):
        raise ValueError(f"state.json is of step {step}, and the folder is {folder.name}")
    if not isinstance(files, dict) or not files.keys() >= FILES or any(Path(name).name != name for name in files):
        raise ValueError(f"state.json does not list {', '.join(sorted(FILES))} as its files")
    for name, digest in files.items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} has changed since it was written")
    return Checkpoint(folder, step, state)


def open_valid(folder: Path) -> Checkpoint:
    """The checkpoint in a folder `checkpoints/step_...`. Raises UserError if it is incomplete or damaged."""
    try:
        return _open(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"the checkpoint {folder} is damaged: {error}; give another step") from error


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint; None if there is none. Damaged ones are skipped with a warning."""
    found, damaged = _newest(folder)
    _warn_of(damaged)
    return found


def _newest(folder: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest valid checkpoint, and what is wrong with each newer one."""
    damaged: dict[Path, str] = {}
    for _, path in steps(folder):
        try:
            return _open(path), damaged
        except (OSError, ValueError) as error:
            damaged[path] = str(error)
    return None, damaged


def _warn_of(damaged: dict[Path, str]) -> None:
    for path, why in damaged.items():
        warnings.warn(f"skipping the damaged checkpoint {path}: {why}", stacklevel=3)


def require(run: Path) -> Checkpoint:
    """A run's newest valid checkpoint. Raises UserError if there is none."""
    found, damaged = _newest(run / "checkpoints")
    if found is None:
        why = "".join(f" ({path.name} is damaged: {reason})" for path, reason in list(damaged.items())[:1])
        raise no_checkpoint(run, why)
    _warn_of(damaged)
    return found


def prune(folder: Path, newest_step: int, keep_last: int, best_step: int | None) -> None:
    """Keeps the last `keep_last` checkpoints up to `newest_step`, and the best. Later ones were damaged and skipped
    when resuming; they do not count, and this run will write them again."""
    for rank, (step, path) in enumerate((s, p) for s, p in steps(folder) if s <= newest_step):
        if rank >= keep_last and step != best_step:
            # renamed first, so that a kill in between does not leave a partly deleted folder that looks valid
            doomed = folder / f".{path.name}.tmp"
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def load_named(into: dict[str, Any], tensors: dict[str, Tensor], where: str) -> None:
    """Copies tensors into parameters of the same names and shapes. Raises UserError with those that do not fit."""
    odd = sorted(into.keys() ^ tensors.keys()) + sorted(
        k for k in into.keys() & tensors.keys() if into[k].shape != tensors[k].shape
    )
    if odd:
        some = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
        raise UserError(
            f"the weights in {where} do not fit this run: {len(odd)} differ by name or shape ({some}); "
            "compose the same backbone, lora, head and data (channels, classes) as there"
        )
    for name, tensor in tensors.items():
        copy_into(into[name], tensor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Adam's state by parameter name, as `exp_avg/<name>` and so on."""
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
        of_each_weight = value.shape == parameter.shape
        optimizer.state[parameter][key] = part_like(value, parameter) if of_each_weight else value.to(parameter.device)
