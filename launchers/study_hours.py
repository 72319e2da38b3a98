"""Predicts the cost of a study with `urepa.plan`, before a job is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir

from launchers.study import PlannedRun
from urepa.cli import CONF
from urepa.core import progress
from urepa.plan import check_measured, hours, totals
from urepa.runs.run_folder import to_plain


def plan_configs(runs: Sequence[PlannedRun], measured: str | None) -> dict[tuple[str, ...], dict[str, Any]]:
    """The config of `plan` for each arm; seeds cost the same. Raises UserError if `measured` is not a measurement of
    the device."""
    arms = {arm_of(run): run for run in runs}
    parts = {arm: _compose_plan(run, measured) for arm, run in arms.items()}
    for one in parts.values():
        check_measured(one)
    return parts


def training_hours(runs: Sequence[PlannedRun], parts: dict[tuple[str, ...], dict[str, Any]]) -> str:
    """A sentence on the GPU-hours of all runs, from the result of `plan_configs`: a lower bound, and the expected hours
    if the device was measured. Caches, evaluation and comparison are not included."""
    from urepa.costs.estimate import Device, plan

    plans = {}
    for arm, one in progress.bar(parts.items(), desc="hours", unit="arm", leave=False):
        plans[arm] = plan(one, Device(**one["device"]), check_measured(one))
    floor, expected = totals([plans[arm_of(run)] for run in runs])
    device = next(iter(plans.values())).device.name
    return f"training, GPU-hours on {device}: {hours(floor)} at least, expected: {hours(expected)}"


def _compose_plan(run: PlannedRun, measured: str | None) -> dict[str, Any]:
    """Composes the config of `plan` for a run."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return to_plain(compose("plan", run.overrides)) | {"measured": measured}


def arm_of(run: PlannedRun) -> tuple[str, ...]:
    """A run's overrides without its seed."""
    return tuple(o for o in run.overrides if not o.startswith("seed="))
