"""A command composes its config once, and is a sweep where hydra.mode says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import edge
import pytest
from hydra._internal.hydra import Hydra

MISTAKE = "trainer.log_every=0"


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that Hydra has composed, by mode."""
    modes: list[Any] = []
    compose = Hydra.compose_config

    def counting(self: Hydra, *arguments: Any, **named: Any) -> Any:
        modes.append(named["run_mode"].name)
        return compose(self, *arguments, **named)

    monkeypatch.setattr(Hydra, "compose_config", counting)
    return modes


def test_a_run_is_composed_once(compositions: list[Any], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = edge.run(capfd, "urepa.train", [MISTAKE], tmp_path)
    assert done.err == f"error: {MISTAKE}: give 1 or more\n"
    assert compositions == ["RUN"]


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["hydra.mode=MULTIRUN", "+hydra.mode=MULTIRUN"])
def test_a_mode_on_the_command_line_applies(
    typed: str, compositions: list[Any], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = edge.run(capfd, "urepa.train", [typed, "seed=0,1", MISTAKE], tmp_path)
    assert done.code == 1
    assert compositions == ["MULTIRUN", "MULTIRUN"]


@pytest.mark.slow
def test_a_mode_in_a_config_dir_applies(
    compositions: list[Any], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "own" / "experiment" / "swept.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nhydra:\n  mode: MULTIRUN\n")
    done = edge.run(capfd, "urepa.train", ["--config-dir", "own", "+experiment=swept", "seed=0,1", MISTAKE], tmp_path)
    assert done.code == 1
    assert compositions == ["MULTIRUN", "MULTIRUN"]
