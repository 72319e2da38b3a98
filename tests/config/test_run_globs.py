"""Several runs given by a pattern, for commands that take a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from urepa.config.run_globs import expand_run_globs
from urepa.core.errors import UserError


def run_folders(place: Path, *names: str) -> None:
    for name in names:
        (place / name).mkdir(parents=True)
        (place / name / "config.yaml").touch()


def test_a_pattern_gives_the_matching_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns are read with Hydra's grammar: one value per run, whatever characters their names have."""
    monkeypatch.chdir(tmp_path)
    odd = "outputs/quickstart,loss.lambda_max=0,data.images=it's/seed0"
    run_folders(tmp_path, "outputs/b/seed10", "outputs/b/seed2", odd, "elsewhere/b/seed0")
    (tmp_path / "outputs/b/seed1").mkdir()
    (tmp_path / "outputs/b/seed3").touch()
    for pattern in ("outputs/*/seed*", "'outputs/*/seed*'", "outputs/**"):
        multirun, argument, other = expand_run_globs(
            ["-m", f"run=glob({pattern})", "data.root=x"], "evaluate", sweeps=True
        )
        assert (multirun, other) == ("-m", "data.root=x")
        parsed = OverridesParser.create().parse_override(argument)
        assert [str(one.text) for one in parsed.value().list] == ["outputs/b/seed2", "outputs/b/seed10", odd]
    given = ["-m", "run=glob(outputs/quickstart,loss.lambda_max=*/seed0)"]
    assert OverridesParser.create().parse_override(expand_run_globs(given, "export", sweeps=True)[1]).value() == odd
    assert expand_run_globs(["run=outputs/b/seed2"], "evaluate", sweeps=False) == ["run=outputs/b/seed2"]
    assert expand_run_globs(given, "train", sweeps=True) == given, "a command without such a key"


def test_a_pattern_without_runs_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_folders(tmp_path, "outputs/b/seed0")
    (tmp_path / "outputs/c/seed1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^run=glob\(outputs/\*/seed5\) matches no run's folder; give a pattern"):
        expand_run_globs(["-m", "run=glob(outputs/*/seed5)"], "evaluate", sweeps=True)
    with pytest.raises(UserError, match=r"matches no run's folder; of 1 that match none has a config.yaml; give"):
        expand_run_globs(["-m", "run=glob(outputs/*/seed1)"], "generate", sweeps=True)
    with pytest.raises(UserError, match=r"^run=glob\(outputs/\*/seed\*\) is several runs: add -m"):
        expand_run_globs(["run=glob(outputs/*/seed*)"], "evaluate", sweeps=False)
