"""The first update of a run as tables: shapes and devices, optimiser groups, losses. For `python -m urepa.one_batch`.

Shapes are printed as BxNxD and so on (`urepa.core.types`).
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from urepa.core.teacher_names import ALONE
from urepa.core.text_tables import Table
from urepa.core.types import Batch, Tokens
from urepa.method.training_step import Aligned
from urepa.models.weight_files import trainable
from urepa.runs.trackers.no_tracking import NoShipper
from urepa.training.first_lines import device
from urepa.training.run_lifecycle import accelerate_for
from urepa.training.trainer import Trainer
from urepa.training.trainer_assembly import build

WIDTH = 120  # of a terminal's lines
RATES = 1000  # points of the learning rate's curve at which the largest is looked for


def one_update(config: dict[str, Any], folder: Path) -> list[str]:
    """Makes the update with index 0 of a run in `folder` and returns its tables. Raises UserError as a run does before
    step 0."""
    accelerator = accelerate_for(config["trainer"])
    try:
        trainer, _ = build(config, folder, accelerator, NoShipper())
        try:
            return tables(trainer)
        finally:
            trainer.reader.cache.close()
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


def tables(trainer: Trainer) -> list[str]:
    """The tables of a trainer at step 0, which makes one update."""
    first, *_ = batches = trainer.reader.read(0)
    batch = first.to(trainer.accelerator.device)
    with torch.no_grad():
        _, output = trainer.forward(batch, 0)
    head = f"device       {device(trainer.accelerator, trainer.settings.precision)}"
    shown = [head, _text(shapes(batch, output))]
    row = trainer.log(1, trainer.update(0, batches, with_tap_gradients=True))
    return [*shown, _text(groups(trainer, row)), _text(losses(trainer, row)), memory(trainer)]


def shapes(batch: Batch, output: Aligned) -> Table:
    """A row for each tensor of the first micro-batch: the batch, its condition, the taps and what is compared there."""
    rows = [_row("x0", batch.x0), _row("t", batch.t_B)]
    for name in batch.condition.names:
        rows.append(_row(f"condition {name}", batch.condition[name].value))
    rows.append(_row("prediction", output.prediction_RCHW))
    rows += [_tokens(f"tap {tap}", tokens) for tap, tokens in output.features.items()]
    rows += [_tokens(f"projected {name}", tokens) for name, tokens in output.tokens.items()]
    rows += [_tokens(f"teacher {name}" if name != ALONE else "teacher", t) for name, t in batch.teachers.items()]
    return Table("shapes", ("tensor", "shape", "grid", "type", "device"), tuple(rows), numbers=False)


def _row(name: str, tensor: Tensor, grid: Iterable[int] = ()) -> tuple[str, ...]:
    kind = str(tensor.dtype).removeprefix("torch.")
    return name, _by_x(tensor.shape), _by_x(grid), kind, str(tensor.device)


def _tokens(name: str, tokens: Tokens) -> tuple[str, ...]:
    return _row(name, tokens.x_BND, tokens.grid)


def _by_x(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def groups(trainer: Trainer, row: dict[str, Any]) -> Table:
    """A row for each group of the optimiser. `row`: the logged values of the update."""
    settings, declared = trainer.settings, trainer.declared_optimizer
    steps = range(0, settings.max_steps, max(1, settings.max_steps // RATES))
    highest = max(steps, key=lambda step: declared.rate(step, settings.max_steps))
    declared.set_lr(trainer.optimizer, highest, settings.max_steps)
    names = {id(parameter): name for name, parameter in trainable(trainer.model).items()}
    rows = []
    for group in trainer.optimizer.param_groups:
        own = group["params"]
        count = f"{sum(parameter.numel() for parameter in own):,}"
        norm = f"{row['grad_norm/' + group['name']]:.4g}"
        rows.append((group["name"], f"{len(own):,}", count, f"{group['lr']:.4g}", norm, names[id(own[0])]))
    frozen = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    rows.append(("frozen", "", f"{frozen:,}", "", "", ""))
    titles = ("optimiser group", "tensors", "parameters", "highest rate", "gradient norm", "first tensor")
    return Table("groups", titles, tuple(rows))


def losses(trainer: Trainer, row: dict[str, Any]) -> Table:
    """The terms of the first update's loss, and both terms' gradients at each tap."""
    meanings = {
        "train/total": "total loss, with λ of this update",
        "train/diffusion": "diffusion loss",
        "train/token": "alignment: 1 - cosine by token",
        "train/cosine": "cosine of projected and teacher tokens",
        "train/manifold": "alignment: manifold",
        "train/lambda": "λ of this update",
    }
    rows = [(f"{key}: {meaning}", f"{row[key]:.4f}") for key, meaning in meanings.items() if key in row]
    rows.append(("loss.lambda_max: λ after its warm-up", f"{trainer.loss.lambda_max:.4f}"))
    rows += [(f"{key}, before λ", f"{value:.4g}") for key, value in row.items() if key.startswith("tap/")]
    return Table("losses", ("losses of the first update", "value"), tuple(rows))


def memory(trainer: Trainer) -> str:
    """The largest memory of the process so far: on a GPU that of its tensors, else that of the process."""
    on_gpu = trainer.accelerator.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"peak memory  {peak / 2**30:.2f} GiB of the {'GPU' if on_gpu else 'process'}"


def _text(table: Table) -> str:
    return "\n".join(line.rstrip() for line in table.lines(WIDTH))
