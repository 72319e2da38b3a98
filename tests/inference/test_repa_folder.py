"""The folder of a run with REPA: its images, its features, and what cannot be exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import urepa
from urepa.core.errors import UserError
from urepa.generate import check_run_request
from urepa.inference.image_request import generate

Build = Callable[..., Any]
Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, compose: Compose, small_sit: list[str]) -> Path:
    from toy_runs import write_run

    return write_run(tmp_path_factory.mktemp("outputs") / "sit" / "seed0", compose(*small_sit), 10)


def ask(compose: Compose, run: Path, *overrides: str) -> dict[str, Any]:
    return check_run_request(compose(f"run='{run}'", "steps=3", "n=1", "classes=[1,7]", *overrides, root="generate"))


@pytest.mark.slow
def test_a_flow_is_generated_by_its_own_samplers(run: Path, compose: Compose) -> None:
    from PIL import Image

    made = {}
    for sampler in ("null", "heun", "sde"):
        generate(ask(compose, run, f"sampler={sampler}", f"out={run / sampler}"))
        made[sampler] = np.stack([np.asarray(Image.open(p)) for p in sorted((run / sampler / "images").iterdir())])
    assert made["null"].shape == (2, 16, 16, 3)
    assert len({m.tobytes() for m in made.values()}) == 3
    generate(ask(compose, run, "guidance=2", "guidance_interval=[0,0.7]"))
    (folder,) = (run / "generated").iterdir()
    assert folder.name == "step_00000010,euler3,n=1,guidance=2,seed=0,within=0-0.7,classes=1+7"
    with pytest.raises(UserError, match=r"holds other images \(sampler: euler there, heun here\)"):
        generate(ask(compose, run, "sampler=heun", f"out={run / 'null'}"))
    with pytest.raises(UserError, match=r"guidance_interval: None there, \[0.2, 1.0\] here"):
        generate(ask(compose, run, "guidance_interval=[0.2,1]", f"out={run / 'null'}"))
    with pytest.raises(
        UserError, match="sampler=ddim cannot sample this run's objective; give one of euler, heun, sde"
    ):
        generate(ask(compose, run, "sampler=ddim"))
    for interval in ("[0.5]", "[0.5,0.2]", "[0,2]"):
        with pytest.raises(UserError, match=r"guidance_interval=.*: give two times"):
            ask(compose, run, f"guidance_interval={interval}")


@pytest.mark.slow
def test_features_are_computed_at_times_of_the_runs_objective(run: Path) -> None:
    opened = urepa.load(run, device="cpu")
    images = torch.rand(2, 1, 16, 16)
    half = opened.features(images, tap="block_3")
    assert (half.grid, half.x_BND.shape) == ((4, 4), (2, 16, 32))
    assert torch.equal(half.x_BND, opened.features(images, 0.5, tap="block_3").x_BND)
    assert opened.aligned(images, torch.tensor([0.1, 0.9]), tap="block_3").x_BND.shape == (2, 16, 1280)
    with pytest.raises(UserError, match="t=500: give times from 0 to 1"):
        opened.aligned(images, 500, tap="block_3")
    for t in (500, 1.5):
        with pytest.raises(UserError, match=f"t={t}: give times from 0 to 1"):
            opened.features(images, t, tap="block_3")


@pytest.mark.slow
def test_a_unet_on_a_flow_is_not_exported(tmp_path: Path, compose: Compose, small_run: list[str]) -> None:
    from toy_runs import write_run

    from urepa.inference.export_weights import export

    run = write_run(tmp_path / "unet" / "seed0", compose(*small_run, "objective=flow", "evaluation=none"), 3)
    with pytest.raises(UserError, match="which diffusers' layout cannot represent"):
        export(compose(f"run='{run}'", root="export"))
