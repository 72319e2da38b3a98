"""The settings of conf/trainer, as the training loop reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Settings:
    """The settings of conf/trainer; `urepa.config` describes the fields."""

    max_steps: int
    batch_size: int
    accumulation: int
    precision: str
    frozen: str
    channels_last: bool
    attention: str | None
    compile: bool
    clip_norm: float | None
    ema_decay: float
    ema_warmup: bool
    log_every: int
    validate_every: int
    validation_group: int
    checkpoint_every: int
    keep_last: int
    max_skipped: int
    deterministic: bool
    threads: int | None
    evaluate_every: int | None = None  # defaults for runs stored before these two keys existed
    evaluation_share: float = 0.1
    skip_spikes: bool = False
    sharding: str | None = None
    look_every: int | None = None
    look_share: float = 0.02


def threads_warning(before: int) -> str | None:
    """A warning if this process has another number of CPU threads than the run had before; None if it has not."""
    now = torch.get_num_threads()
    if before == now:
        return None
    return (
        f"warning: this run used {before} CPU threads before and has {now} now; sums round differently, so it will not "
        f"repeat bit for bit (trainer.threads={before})"
    )
