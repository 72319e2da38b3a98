"""The settings of launchers: those of the submitit plugin, each with a meaning, a type and a range."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf.errors import OmegaConfBaseException

from urepa.cli import CONF
from urepa.config.help import help_text
from urepa.config.launcher_schemas import LAUNCHERS, Slurm
from urepa.config.mistyped_keys import error_message
from urepa.config.ranges import check_numbers
from urepa.core.declared_keys import keys_of
from urepa.core.errors import UserError

Compose = Callable[..., dict[str, Any]]


def test_the_slurm_launcher_has_the_settings_of_the_plugin() -> None:
    assert {f.name for f in fields(SlurmQueueConf)} | {"gpus"} == {f.name for f in fields(Slurm)}


def test_numbers_have_ranges() -> None:
    for schema in LAUNCHERS.values():
        hints = get_type_hints(schema)
        keys = list(keys_of(schema))
        assert keys
        assert [k.name for k in keys if "int" in str(hints[k.name]) and k.range is None] == []


@pytest.mark.parametrize(
    ("overrides", "key", "value", "most"),
    [
        (["cluster=slurm"], "gpus", 9, "give 1 or more, at most 8"),
        (["cluster=slurm"], "timeout_min", 0, "give 1 or more"),
        (["cluster=local"], "at_once", 0, "give 1 or more, at most 1,024"),
        (["cluster=local"], "gpus", [0, -1], "give 0 or more"),
    ],
)
def test_numbers_out_of_range(compose: Compose, overrides: list[str], key: str, value: Any, most: str) -> None:
    settings = compose(*overrides, root="ablation_grid")
    check_numbers(settings)
    changed = settings["cluster"] | {key: value}
    with pytest.raises(UserError, match=rf"^cluster.{key}={re.escape(str(value))}: {most}"):
        check_numbers(settings | {"cluster": changed})
    with pytest.raises(UserError, match=rf"^hydra.launcher.{key}={re.escape(str(value))}: {most}"):
        check_numbers({"hydra": {"launcher": changed}})


@pytest.mark.parametrize(
    ("root", "choice", "place", "keys"),
    [
        ("train", "hydra/launcher=slurm_h200", "hydra.launcher", {"partition", "gpus", "setup"}),
        ("train", "hydra/launcher=local", "hydra.launcher", {"at_once", "gpus", "folder"}),
        ("ablation_grid", "cluster=slurm", "cluster", {"partition", "gpus", "setup"}),
        ("ablation_grid", "cluster=local", "cluster", {"at_once", "gpus", "folder"}),
    ],
)
def test_help_shows_the_keys_of_the_chosen_launcher(
    compose: Compose, root: str, choice: str, place: str, keys: set[str]
) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = hydra_compose(root, [choice], return_hydra_config=True)
        text = help_text(root, config)
    _, _, shown = text.partition(f"\nKeys of {choice}\n")
    assert keys <= set(re.findall(rf"^  {re.escape(place)}\.(\w+)", shown, re.MULTILINE))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("hydra.launcher.atonce=1", "there is no key 'hydra.launcher.atonce' (did you mean 'hydra.launcher.at_once'?)"),
        ("hydra.launcher.at_once=two", "hydra.launcher.at_once=two: give a whole number"),
    ],
)
def test_mistakes_are_reported_in_one_line(compose: Compose, typed: str, said: str) -> None:
    given = ["hydra/launcher=local", typed]
    with (
        initialize_config_dir(CONF, version_base="1.3"),
        pytest.raises((HydraException, OmegaConfBaseException)) as raised,
    ):
        hydra_compose("train", given, return_hydra_config=True)
    assert error_message(raised.value, "train", given) == said
