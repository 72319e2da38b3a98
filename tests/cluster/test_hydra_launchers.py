"""Hydra's launchers as they are composed, and a sweep on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from urepa.cli import CONF
from urepa.cluster.hydra_launchers import SlurmLauncher, caches_to_make


def said(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "urepa.train", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_an_administrator_can_read_the_settings(tmp_path: Path) -> None:
    asked = ("hydra/launcher=slurm_h200", "hydra.launcher.gpus=4", "--cfg", "hydra")
    assert "\n    gres: gpu:h200:${.gpus}\n" in said(tmp_path, *asked).stdout
    settings = yaml.safe_load(said(tmp_path, *asked, "-p", "hydra.launcher", "--resolve").stdout)
    expected = {"gres": "gpu:h200:4", "tasks_per_node": 4, "nodes": 1, "setup": [], "array_parallelism": 16}
    expected |= {"partition": None, "account": None, "timeout_min": 1440, "submitit_folder": "outputs/.jobs"}
    assert expected.items() <= settings.items()
    assert settings["additional_parameters"]["requeue"] is True


def test_a_field_hides_no_method_of_hydras() -> None:
    """submitit has a field called `setup`, Hydra a method."""
    launcher = SlurmLauncher(setup=["module load x"], gpus=1)
    assert callable(launcher.setup)
    assert (launcher.settings["setup"], launcher.settings["gpus"]) == (["module load x"], 1)
    assert callable(SlurmLauncher(gpus=1).setup)


@pytest.mark.parametrize("group", ["experiment", "ablation"])
def test_no_experiment_chooses_a_launcher(group: str) -> None:
    """Hydra silently ignores a launcher that an experiment chooses, in sweeps."""
    files = sorted((Path(CONF) / group).glob("*.yaml"))
    assert files
    assert [file.name for file in files if "hydra/" in file.read_text()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweeper",
    [
        (),
        ("hydra/launcher=local", "hydra.launcher.gpus=[]"),
        ("hydra/launcher=slurm_h200",),
        ("hydra/sweeper=optuna", "hydra.sweeper.metric=val/diffusion", "hydra.sweeper.direction=minimize"),
    ],
    ids=["basic", "local", "slurm", "optuna"],
)
def test_a_mistake_of_a_sweep_is_reported_once_before_any_run(tmp_path: Path, sweeper: tuple[str, ...]) -> None:
    """It is one that Hydra composes."""
    more = ("hydra.sweeper.trials=3",) if "hydra/sweeper=optuna" in sweeper else ("seed=0,1",)
    done = said(tmp_path, "-m", *sweeper, *more, "tracking=none", "trainer.log_every=0", "head.depth=1,2")
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("", "error: trainer.log_every=0: give 1 or more\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_caches_that_runs_make_are_said_before(
    compose: Callable[..., Any], small_run: list[str], tmp_path: Path
) -> None:
    """Each folder once; none where a run trains without a teacher, or where the caches are there."""

    def roots(*commands: list[str]) -> list[str]:
        return caches_to_make([OmegaConf.create(compose(*command)) for command in commands])

    there = [o for o in small_run if not o.startswith("loss.")]
    elsewhere = [*there, f"data.root={tmp_path}"]
    other = "teacher.grid=[4,4]"  # other tokens of the same images
    assert roots(there, [*there, "loss=none", other]) == []
    assert roots(elsewhere, there, [*elsewhere, "seed=1"]) == [str(tmp_path)]
    assert roots([*there, other]) == [compose(*there)["data"]["root"]]
    assert roots([*elsewhere, "data.build_on_first_use=false"]) == []


@pytest.mark.slow
def test_too_many_at_once(tmp_path: Path) -> None:
    local = ("hydra/launcher=local", "hydra.launcher.at_once=3", "hydra.launcher.gpus=[0,1]")
    done = said(tmp_path, "-m", *local, "tracking=none", "seed=0,1")
    assert done.returncode == 1
    assert done.stderr == "error: at_once=3: give 1 to 2, a GPU for each run\n"
