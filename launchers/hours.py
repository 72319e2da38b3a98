"""What a study costs, by `urepa.plan`, before a job is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from launchers.study import Run
from urepa import progress
from urepa.doors import CONF
from urepa.plan import hours, totals
from urepa.runs import plain


def training_hours(runs: Sequence[Run], measured: str | None) -> str:
    """GPU-hours of all runs: a floor, and what is expected where the device was measured. Caches, evaluation and
    comparison are not in it. Seeds cost the same, so each arm is counted once."""
    from urepa.costs import Device, plan

    first = {arm_of(run): run for run in runs}
    plans = {}
    for arm, run in progress.bar(first.items(), desc="hours", unit="arm", leave=False):
        with initialize_config_dir(CONF, version_base="1.3"):
            parts = plain(compose("plan", run.overrides))
        plans[arm] = plan(parts, Device(**parts["device"]), None if measured is None else Path(measured))
    floor, expected = totals([plans[arm_of(run)] for run in runs])
    device = next(iter(plans.values())).device.name
    return f"training, GPU-hours on {device}: {hours(floor)} at least, expected: {hours(expected)}"


def arm_of(run: Run) -> tuple[str, ...]:
    """A run's overrides without its seed."""
    return tuple(o for o in run.overrides if not o.startswith("seed="))
