"""What `urepa.bench` cannot time, found in the config alone."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.teacher_names import ALONE


def check_bench(config: dict[str, Any]) -> None:
    """UserError where a loop that is asked for does not exist."""
    settings, data = config["bench"], config["data"]
    if data.get("online_latents", False) or data.get("online_teacher", False):
        raise UserError(
            "bench times a step over records: leave data.online_latents and data.online_teacher out; what they add "
            "is counted by `python -m urepa.plan`, and bench.against=online times a teacher that is asked"
        )
    if settings["against"] == "online" and config["loss"]["_target_"].endswith(".DiffusionOnly"):
        raise UserError(
            "bench.against=online asks the teacher in every step, and loss=none has none; choose another loss"
        )
    if settings["against"] == "plain" and ALONE not in declaration_of(config["teacher"]).members():
        raise UserError("bench.against=plain takes tokens of one teacher; choose one, or leave bench.against out")
    if settings["parts"] and config["backbone"]["_target_"].endswith(".sit"):
        raise UserError("bench.parts takes a U-Net's step apart, and this experiment has none; leave it out")
