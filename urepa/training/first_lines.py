"""The first lines of a run's output: device, parameters, samples, classes, and a warning if averages would lag."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from urepa.core.ema_initial_weights import lag_ahead
from urepa.core.escaping import printable
from urepa.data.cache import Cache
from urepa.training.trainer import Trainer

NAMED = 5  # number of class names shown


def start_lines(trainer: Trainer) -> str:
    """The lines that a trainer prints before its first step."""
    precision, cache = trainer.settings.precision, trainer.reader.cache
    lines = {
        "device": device(trainer.accelerator, precision),
        "parameters": parameters(trainer.model),
        "samples": samples(trainer),
        "classes": classes(cache.num_classes, cache.class_names),
    }
    ema = trainer.ema
    if lag := lag_ahead(ema.decay, trainer.settings.max_steps, ema.warmup):
        lines["averages"] = f"at the last step, {lag}"
    return "\n".join(f"{name:<11} {line}" for name, line in lines.items())


def device(accelerator: Accelerator, precision: str) -> str:
    """The device of a process, and the number of processes."""
    on_gpu = accelerator.device.type == "cuda"
    name = torch.cuda.get_device_name(accelerator.device) if on_gpu else f"CPU ({platform.machine()})"
    processes = count_text(accelerator.num_processes, "process", "processes")
    each = " each" if accelerator.num_processes > 1 else ""
    return f"{name}, {processes}, {count_text(torch.get_num_threads(), 'thread', 'threads')}{each}, {precision}"


def parameters(model: nn.Module) -> str:
    """The number of parameters by part, and how many of them train."""
    by_part = {"backbone": [0, 0], "LoRA": [0, 0], "heads": [0, 0]}
    for name, parameter in model.named_parameters():
        part = "heads" if name.startswith("heads.") else "LoRA" if "lora_" in name else "backbone"
        by_part[part][0] += parameter.numel()
        by_part[part][1] += parameter.numel() * parameter.requires_grad
    return ", ".join(
        f"{part} {total:,} ({'all' if trained == total else f'{trained:,}'} trainable)" if total else f"no {part}"
        for part, (total, trained) in by_part.items()
    )


def samples(trainer: Trainer) -> str:
    """The number of samples by split, how often the run uses each training sample and, with several buckets, their
    sizes."""
    names = {"train": "training", "val": "validation", "test": "test"}
    splits = trainer.reader.cache.splits.items()
    steps, size = trainer.settings.max_steps, trainer.settings.batch_size
    epochs = f"{steps / trainer.reader.steps_per_epoch:.3g}"
    counts = ", ".join(f"{len(found):,} {names[split]}" for split, found in splits)
    length = f"{count_text(steps, 'step', 'steps')} of {size:,} are {epochs} epoch{'s' * (epochs != '1')}"
    return f"{counts}; {length}{bucket_text(trainer.reader.cache.buckets)}"


def bucket_text(buckets: Sequence[Cache]) -> str:
    """The number of training samples of each bucket, with a separator in front; empty for one bucket."""
    named = [f"{len(bucket.splits['train']):,} of {bucket.bucket}" for bucket in buckets]
    return f"; training images {', '.join(named)}" if len(named) > 1 else ""


def classes(count: int, names: Any) -> str:
    """The number of classes, and the first names if there are any."""
    shown = ", ".join(printable(name) for name in list(names)[:NAMED])
    return f"{count:,}: {shown}{', ...' if count > NAMED else ''}" if shown else f"{count:,}"


def count_text(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """The number of parameters by part, and of those that train, for a run's summary."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
        if parameter.requires_grad:
            counts[f"{part}_trainable"] = counts.get(f"{part}_trainable", 0) + parameter.numel()
    return counts
