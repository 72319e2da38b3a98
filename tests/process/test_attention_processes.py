"""Real processes with a loss that compares attention maps: two gloo processes equal one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attending_vit
import pytest
from workspace import TINY_SIT, Workspace, without_timings

RUN = ("trainer.log_every=1", "tracking=none")


def test_two_processes_equal_one(make_workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    teacher = attending_vit.write(tmp_path / "vit")
    overrides = ("loss=haste", "loss.attention.block_0=1", "loss.attention.block_1=2", "schedule.stop_step=9", *RUN)
    sit = tuple(o for o in TINY_SIT if not o.startswith("teacher"))
    alone, two = (make_workspace((*sit, *teacher)) for _ in range(2))
    alone.train(*overrides)
    two.train(*overrides, ranks=2)
    rows = without_timings(alone.run)
    assert "val/attention" in rows[-1]
    assert ["train/attention" in row for row in rows if "train/total" in row].count(True) == 9
    for ours, theirs in zip(without_timings(two.run), rows, strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            if key.startswith(("train/", "val/", "grad_norm")):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), (theirs["step"], key)
