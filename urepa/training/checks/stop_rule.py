"""Checks of a rule that may end a run early, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError, did_you_mean
from urepa.core.nested_dicts import flatten
from urepa.core.run_protocols import StopRule
from urepa.runs.metrics import values_by_step
from urepa.runs.run_folder import RunFolder, no_run
from urepa.runs.summary import read_summary

ALWAYS = ("val/diffusion", "val/total", "val/x0_error")  # that every run logs
# what a paired control must have alike: otherwise two values at a step are of other data, or of another quantity
ALIKE = ("seed", "data", "objective", "trainer.batch_size", "trainer.validation_group")
MAY_DIFFER = ("data.root", "data.images", "data.stage_to", "data.build_on_first_use")


def check_stop_rule(config: Mapping[str, Any]) -> None:
    """Raises UserError if the run does not log the rule's metric, or the rule's control is not a finished, paired
    one."""
    rule: StopRule = declaration_of(config["stop_when"])
    if rule.metric is None:
        return
    own = [column.key for column in getattr(declaration_of(config["loss"]), "metrics", ())]
    known = [*ALWAYS, *(key for key in own if key.startswith("val/") and key not in ALWAYS)]
    if rule.metric not in known:
        raise UserError(
            f"stop_when.metric={rule.metric} is no validation loss of this run; it has {', '.join(known)}"
            f"{did_you_mean(rule.metric, known)}"
        )
    if rule.control is not None:
        check_control(rule, config)


def check_control(rule: StopRule, config: Mapping[str, Any]) -> None:
    """Raises UserError unless the rule's control is finished, of the same seed, data, objective and batch, and has
    values at steps at which this run validates. A finished one cannot change, so a resumed run decides alike."""
    named = f"stop_when.control={rule.control}"
    folder = Path(str(rule.control))
    config_there = RunFolder(folder).stored_config()
    if config_there is None:
        raise UserError(no_run("stop_when.control", folder))
    if read_summary(folder) is None:
        raise UserError(f"{named} is not finished: train it to its end first")
    here, there = flatten(dict(config)), flatten(config_there)
    for key in sorted(here.keys() | there.keys()):
        is_alike = any(key == group or key.startswith(f"{group}.") for group in ALIKE)
        if is_alike and key not in MAY_DIFFER and here.get(key) != there.get(key):
            raise UserError(
                f"{named} is no paired control: its {key} is {there.get(key)} and this run's {here.get(key)}; give a "
                "control of the same seed, data, objective and batch"
            )
    every = config["trainer"]["validate_every"]
    steps = values_by_step(folder / "metrics.jsonl", rule.metric)  # 0 is that of a warm start
    if not any(step and step % every == 0 for step in steps):
        raise UserError(
            f"{named} has no {rule.metric} at a step at which this run validates, every {every}; give "
            "trainer.validate_every of the control"
        )
