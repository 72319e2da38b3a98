"""The command that a finished run proposes next composes, on the same data."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.config.command_line import quote_argument
from urepa.config.declared import declaration_of
from urepa.runs.run_folder import Names, own_overrides
from urepa.training.next_command import next_command

Compose = Callable[..., dict[str, Any]]
SWEEP = ["loss.lambda_max=0,0.5", "head.depth=1,2"]


def proposed(config: dict[str, Any], *typed: str, experiment: str = "quickstart") -> list[str]:
    """The arguments of the command proposed for a run, as its folder names it."""
    words = shlex.split(next_command(Names(experiment, "baseline", tuple(own_overrides(list(typed)))), config))
    assert words[:3] == ["python", "-m", "urepa.train"]
    return words[3:]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder whose name has characters that are special to a shell and to Hydra."""
    for name in ("cat", "dog"):
        (tmp_path / "my photos, (all)" / name).mkdir(parents=True)
        (tmp_path / "my photos, (all)" / name / "1.png").write_bytes(b"")
    return tmp_path / "my photos, (all)"


@pytest.mark.slow
def test_the_command_after_the_quickstart(compose: Compose) -> None:
    """Without a warm-up of the average, 0.99^50 of the initial weights would be left."""
    own = ["trainer.max_steps=50", "trainer.ema_warmup=true"]
    assert proposed(compose()) == ["-m", *SWEEP, *own]


@pytest.mark.slow
def test_a_users_photographs_stay_the_data(compose: Compose, photos: Path, tmp_path: Path) -> None:
    """Also after an evaluation, which sets keys of its own; paths are complete and not cut as in the folder's name."""
    typed = ["data=folder", f"data.images={photos}", f"data.root={tmp_path}/caches", "trainer.max_steps=150"]
    config = compose(*map(quote_argument, typed))
    config["data"]["build_on_first_use"] = False
    arguments = proposed(config, *typed)
    assert set(arguments) == {"-m", *SWEEP, *typed, "trainer.ema_warmup=true"}
    again = compose(*(quote_argument(a, sweeps=True) for a in arguments if a != "-m" and a not in SWEEP))
    assert again["data"] == config["data"] | {"build_on_first_use": True}
    assert again["trainer"]["ema_warmup"]


@pytest.mark.slow
def test_a_warm_up_that_is_not_needed_is_not_proposed(compose: Compose) -> None:
    typed = ["trainer.max_steps=500"]
    assert proposed(compose(*typed), *typed) == ["-m", *SWEEP, *typed]
    typed = ["trainer.ema_decay=0.5"]
    assert proposed(compose(*typed), *typed) == ["-m", *SWEEP, *typed, "trainer.max_steps=50"]


@pytest.mark.parametrize(
    "typed",
    [
        ["loss.lambda_max=0"],
        ["head=repa_mlp_small"],
        ["~evaluation.samples"],
        ["tracking=none"],
    ],
)
def test_no_command_is_proposed_after_a_sweep_or_for_untypable_values(compose: Compose, typed: list[str]) -> None:
    config = compose(*typed)
    names = Names("quickstart", "baseline", tuple(own_overrides(typed)))
    shown = declaration_of(config["tracking"]).show_command()
    assert next_command(names, config) == (shown or "python -m urepa.train --help")


def test_after_another_experiment_the_trackers_command_is_proposed(compose: Compose) -> None:
    config = compose("+experiment=cifar10", "data.source=folder", "tracking=none")
    assert proposed(config, experiment="cifar10") == ["--help"]
