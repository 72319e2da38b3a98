"""A stored config is data: nothing in it runs or reads the environment, and a file that is not a run's config is
reported in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from strangers import SECRET, VALUE, forms, payload

from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten, replace_value
from urepa.runs.run_folder import RunFolder, require_config, stored_yaml
from urepa.runs.stored_config import read_config, read_plain

Compose = Callable[..., dict[str, Any]]
TRACKERS = ["tracking=several", *(f"+tracking@tracking.trackers.{n}={n}" for n in ("csv", "mlflow", "wandb"))]
EVERY = "evaluation=[digits,generation,knn,alignment,spatial,dense,linear_probe,inception,clip_score]"


@pytest.fixture(scope="module")
def config(compose: Compose) -> dict[str, Any]:
    composed = compose()
    del composed["arm"]
    return composed


def refusal(file: Path) -> str:
    """Why a config is not read."""
    try:
        return f"it is: {read_config(file)}"
    except UserError as error:
        return str(error)


def test_the_attacks_work_with_plain_hydra_and_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks do run if the configs are given to Hydra and OmegaConf directly."""
    instantiate({"objective": payload(tmp_path / "marker")})["objective"].close()
    assert (tmp_path / "marker").exists()
    monkeypatch.setenv(SECRET, VALUE)
    assert OmegaConf.create({"a": f"${{oc.env:{SECRET}}}"}).a == VALUE


@pytest.mark.slow
def test_nothing_in_a_foreign_config_runs_or_reads(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, VALUE)
    monkeypatch.setattr("builtins.breakpoint", lambda: pytest.fail("called"))
    marker, file = tmp_path / "marker", tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    known = 0
    for name, text in forms(config, marker):
        file.write_text(text)
        said = refusal(file)
        assert str(file) in said, f"{name} was taken, or another file is named: {said}"
        assert "\n" not in said, name
        assert VALUE not in said, name
        assert len(said) < 400 + len(str(file)), name
        assert not marker.exists(), name
        known += 1
    assert known > 60


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    "more",
    [[], [*TRACKERS], ["+experiment=track_a"], ["+experiment=repa_imagenet256"], [EVERY], ["evaluation=cifar10_fd"]],
)
def test_every_config_of_urepa_is_read_as_it_was_stored(compose: Compose, tmp_path: Path, more: list[str]) -> None:
    composed = compose(*more)
    del composed["arm"]
    (tmp_path / "config.yaml").write_text(stored_yaml(composed))
    assert read_config(tmp_path / "config.yaml") == composed


def test_types_are_the_schemas_and_defaults_mean_what_the_code_did(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    without = {k: v for k, v in config["loss"].items() if k != "time_power"}
    constant = {"_target_": config["schedule"]["_target_"]}
    changed = {"loss": without | {"lambda_max": "0.5"}, "seed": "3", "schedule": constant}
    file.write_text(json.dumps(config | changed))
    read = read_config(file)
    assert (read["seed"], read["loss"]["lambda_max"]) == (3, 0.5)
    assert (read["loss"]["time_power"], read["schedule"]["stop_step"]) == (0.0, None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", "x", "seed: Value 'x' of type 'str' could not be converted to Integer"),
        ("loss.lambda_max", [1], "loss.lambda_max: "),
        ("loss.level", "pixel", "loss.level: Invalid value 'pixel', expected one of .sample, token, both"),
        ("head", "conv", "head is 'conv'; it holds a part"),
        ("data.root", None, "data.root: "),
        ("head.dept", 1, "head.dept: Key 'dept' not in 'Conv'"),
        ("objective.beta_start", "???", "objective.beta_start is missing"),
        ("evaluation.samples", None, "evaluation.samples is None; it holds a part"),
    ],
)
def test_a_damaged_value_is_named(config: dict[str, Any], tmp_path: Path, key: str, value: Any, said: str) -> None:
    changed = config | {key: value} if "." not in key else replace_value(config, key, value)
    (tmp_path / "config.yaml").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=said):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["", "a: [1", "\x00", "- 1\n- 2\n", "just text", "backbone: {}\n"])
def test_a_file_that_is_no_config_of_a_run_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is (damaged, or not YAML|not the config of a run)"):
        require_config(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="is not a file of at most"):
        RunFolder(tmp_path).stored_config()


def test_plain_data_are_unchanged(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, True, None, "x: y"], "b": {"c": "", "d": "2026-01-01", "e": {}}, "f": 1e-05}
    file = tmp_path / "any.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(value)))
    assert read_plain(file) == value
    assert flatten(read_plain(file)) == flatten(value)
