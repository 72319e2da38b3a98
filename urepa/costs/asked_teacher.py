"""The number of updates in which a run uses its teacher, as far as it is known before the run."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.protocols import Loss, Schedule


def stop_step(config: dict[str, Any]) -> int | None:
    """The update from which on the teacher is not used, as far as it is known before the run; None: the teacher is used
    until the end, or there is none."""
    loss: Loss = declaration_of(config["loss"])
    max_steps = config["trainer"]["max_steps"]
    if not loss.taps:
        return None
    schedule: Schedule = declaration_of(config["schedule"])
    steps = schedule.teacher_steps(warmup_steps=config["loss"].get("warmup_steps", 0), max_steps=max_steps)
    return int(steps) if steps < max_steps else None
