"""A user's mistake ends in one line and exit code 1, in a real process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from urepa.core.errors import UserError
from urepa.core.one_line_errors import OTHER_RANKS_WAIT_S, one_line_mistakes

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WORLD_SIZE", "RANK")}
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(arguments: list[str], folder: Path, *python: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "RANK=1 without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT in the environment: start"),
        ({"RANK": "3", "WORLD_SIZE": "two"}, "WORLD_SIZE=two, which is not a whole number, in the environment"),
    ],
)
@pytest.mark.parametrize("command", ["urepa.train trainer.log_every=0", "urepa.compare", "launchers.status"])
def test_invalid_ranks_are_reported(
    command: str, variables: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    done = run(command.split(), tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {words}")
    assert len(done.stderr.splitlines()) == 1


def test_another_rank_prints_its_own_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails later than the first rank, whose end usually ends it; also without torchrun."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), one_line_mistakes():
        raise UserError("only here")
    assert capsys.readouterr().err == "error: only here\n"
    assert waited == [OTHER_RANKS_WAIT_S]


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The top-level packages that -X importtime lists."""
    lines = (line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.split(".")[0] for line in lines}


@pytest.mark.slow
def test_help_lists_the_groups_without_loading_torch(tmp_path: Path) -> None:
    done = run(["urepa.train", "--help"], tmp_path, "-X", "importtime")
    assert done.returncode == 0
    for group in (
        "backbone",
        "head",
        "teacher",
        "objective",
        "loss",
        "schedule",
        "data",
        "optimizer",
        "trainer",
        "experiment",
    ):
        assert re.search(rf"^  \+?{group}  ", done.stdout, re.MULTILINE)
    assert "+experiment=NAME" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert "hydra" in imported(done)
    assert not imported(done) & {"torch", "diffusers", "mlflow", "sklearn"}


@pytest.mark.slow
def test_help_of_published_weights_is_their_own(tmp_path: Path) -> None:
    done = run(["urepa.generate", "checkpoint=some/file,v=1.pt", "-h"], tmp_path, "-X", "importtime")
    assert done.returncode == 0
    assert done.stdout.startswith("urepa.generate: makes images of published weights, without a run")
    assert re.search(r"^  checkpoint +some/file,v=1.pt  published weights", done.stdout, re.MULTILINE)
    assert not imported(done) & {"torch", "diffusers", "mlflow", "sklearn"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_mistyped_key_is_found_without_loading_torch(tmp_path: Path) -> None:
    done = run(["urepa.train", "loss.lambdamax=1"], tmp_path, "-X", "importtime")
    assert done.returncode == 1
    assert not imported(done) & {"torch", "diffusers", "mlflow", "sklearn"}


@pytest.mark.slow
def test_a_traceback_is_printed_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "HYDRA_FULL_ERROR", "1")
    done = run(["urepa.train", "trainer.log_every=0"], tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UserError: trainer.log_every=0" in done.stderr
