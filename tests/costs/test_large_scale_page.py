"""The figures of docs/large-scale.md are those of the commands beside them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.costs.estimate import Device, Plan, plan
from urepa.costs.gpu_memory import gpu_memory
from urepa.costs.gpu_memory import table as gpu_table

PAGE = (Path(__file__).parents[2] / "docs" / "large-scale.md").read_text()
H200 = Device("H200", "cuda", 790e12, 141e9)
GIB = 2**30


def commands() -> list[list[str]]:
    """The overrides of the three commands of the first section."""
    section = PAGE.split("## Cached or computed online")[1].split("\n| cached")[0].replace("\\\n", "")
    return [shlex.split(line)[3:] for line in section.splitlines() if "urepa.plan" in line]


def rows() -> list[list[str]]:
    """The cells of its table."""
    section = PAGE.split("| cached")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_caches_and_hours(number: int, compose: Callable[..., dict[str, Any]]) -> None:
    planned: Plan = plan(compose(*commands()[number]), H200)
    assert len(commands()) == len(rows()) == 3
    _, disk, asked, hours = rows()[number]
    assert f"{sum(cache.disk_bytes for cache in planned.counted.caches) / 1e12:.2f}" == disk
    online = sum(planned.flops("forward").get(name, 0) for name in ("teacher", "VAE"))
    assert float(asked) == pytest.approx(online / planned.settings.batch_size / 1e9, abs=0.1)
    assert f"{planned.floor_hours:.1f}" == hours
    assert "fits from 4 GPUs on: trainer.sharding is not needed" in gpu_table(planned)


@pytest.mark.slow
def test_memory_of_each_gpu(compose: Callable[..., dict[str, Any]]) -> None:
    """By hand for a small SiT in fp32: weights, two moments and the average are 16 bytes a parameter."""
    config = compose("+experiment=repa_cifar10_cpu", "data.images=/photos", "trainer.batch_size=16")
    planned = plan(config, Device("small", "cuda", None, None))
    parameters = sum(part["all"] for part in planned.counted.parameters.values())
    one, two, *_ = rows = gpu_memory(planned)
    assert [row.gpus for row in rows] == [1, 2, 4, 8, 16]
    assert one.whole == planned.peak_bytes
    saved = planned.saved_bytes  # more than the step's peak without gradients, as they are not there all at once
    buffers = planned.counted.weights["buffers"]
    assert two.whole == pytest.approx(buffers + (16 + 4 + 4) * parameters + saved / 2, rel=1e-3)
    units = planned.counted.units
    assert units.rest + config["backbone"]["depth"] * units.block == 8 * parameters
    gathered = units.rest + 2 * units.block
    assert two.sharded == pytest.approx(buffers + 10 * parameters + gathered + saved / 2, rel=1e-3)
    assert re.search(r"of 2 +[\d.]+ +[\d.]+\n", gpu_table(planned))
