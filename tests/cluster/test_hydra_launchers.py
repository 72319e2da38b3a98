"""Hydra's launchers as they are composed, and a sweep on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from urepa.cli import CONF
from urepa.cluster.hydra_launchers import SlurmLauncher


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
def test_each_mistake_of_a_local_sweep_is_reported(tmp_path: Path) -> None:
    """Each mistake is reported in its own line, and both jobs were tried."""
    done = said(
        *(tmp_path, "-m", "hydra/launcher=local", "hydra.launcher.at_once=2", "hydra.launcher.gpus=[]"),
        *("tracking=none", "trainer.log_every=0", "head.depth=1,2"),
    )
    assert done.returncode == 1
    assert done.stdout.startswith("2 runs, 2 at a time")
    for depth in (1, 2):
        assert f"FAILED  head.depth={depth}: trainer.log_every=0: give 1 or more\n" in done.stdout
    assert done.stderr == (
        "error: 2 of 2 runs did not finish (head.depth=1, head.depth=2); the same command goes on with them\n"
    )


@pytest.mark.slow
def test_too_many_at_once(tmp_path: Path) -> None:
    local = ("hydra/launcher=local", "hydra.launcher.at_once=3", "hydra.launcher.gpus=[0,1]")
    done = said(tmp_path, "-m", *local, "tracking=none", "seed=0,1")
    assert done.returncode == 1
    assert done.stderr == "error: at_once=3: give 1 to 2, a GPU for each run\n"
