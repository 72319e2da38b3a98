"""The console entry `urepa`: all commands under one name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from urepa.config.commands import COMMANDS

ENTRY = Path(sys.executable).with_name("urepa")


def called(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.fast(1)
@pytest.mark.parametrize("arguments", [["describe", "--help"], ["compare", "runs=nowhere"], ["train", "head.depht=1"]])
def test_a_command_is_the_module_of_its_name(arguments: list[str], tmp_path: Path) -> None:
    command, *rest = arguments
    ours = called(tmp_path, str(ENTRY), command, *rest)
    theirs = called(tmp_path, sys.executable, "-m", f"urepa.{command}", *rest)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert ours.stdout + ours.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_it_lists_them(arguments: list[str], tmp_path: Path) -> None:
    done = called(tmp_path, str(ENTRY), *arguments)
    assert done.returncode == 0
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert sorted(rows) == sorted({c.module.rpartition(".")[2] for c in COMMANDS.values()})


@pytest.mark.slow
def test_a_misspelt_command_is_one_line(tmp_path: Path) -> None:
    done = called(tmp_path, str(ENTRY), "trian")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no command 'trian'; it is one of train, ")
    assert line.endswith("(did you mean 'train'?)")
