"""The objective that an error about published weights proposes, among objectives that urepa does not name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from urepa.config import conf_options
from urepa.config.parts import KINDS, SCHEMAS
from urepa.core.declared_keys import SIZE, setting
from urepa.core.errors import UserError
from urepa.inference.published_weights import check_export_config, check_scheduler
from urepa.method.objectives.ddpm_epsilon import DDPMEpsilon

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timesteps": 1000}


@dataclass
class Clean(DDPMEpsilon):
    """The backbone predicts x0 itself. `share` is a setting of the training only."""

    _target_: str = "test_offered_objectives.Clean"
    share: float = setting("of the images that count", 1.0, ge=0, le=1)

    prediction_type: ClassVar[str] = "sample"
    training_only: ClassVar[tuple[str, ...]] = ("share",)


@dataclass
class Squared:
    """A fixed beta schedule, which is not a setting."""

    _target_: str = "test_offered_objectives.Squared"
    timesteps: int = setting("number of timesteps", ge=1, le=SIZE)

    prediction_type: ClassVar[str] = "epsilon"
    beta_start: ClassVar[float] = 0.0001
    beta_end: ClassVar[float] = 0.02
    beta_schedule: ClassVar[str] = "squaredcos_cap_v2"
    scheduler: ClassVar[dict[str, str]] = dict(DDPMEpsilon.scheduler)
    training_only: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Any number of timesteps is valid."""

    def build(self) -> Any:
        raise AssertionError("nothing is built")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`compose`, with a folder of these objectives beside conf/ and one that cannot be chosen."""
    monkeypatch.setitem(KINDS, "objective", dict(KINDS["objective"]))
    for cls in (Clean, Squared):
        monkeypatch.setitem(SCHEMAS, cls._target_, cls)
        monkeypatch.setitem(KINDS["objective"], cls._target_, cls)
    files = {
        "clean": {"_target_": Clean._target_, **BETAS, "share": 0.5},
        "clean_all": {"_target_": Clean._target_, **BETAS, "share": 1.0},
        "squared": {"_target_": Squared._target_, "timesteps": 1000},
        "broken": {"defaults": ["no_such_file"]},
    }
    folder = tmp_path / "configs"
    (folder / "objective").mkdir(parents=True)
    for name, content in files.items():
        (folder / "objective" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    conf_options.ADDED.append(folder)
    yield compose
    conf_options.ADDED.remove(folder)


@pytest.mark.slow
def test_the_objective_of_a_scheduler_is_proposed(own: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "scheduler_config.json"
    flow = own("objective=flow")["objective"]
    named = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    for said, offered in (
        (named | {"prediction_type": "sample"}, "give objective=clean"),
        (named | {"prediction_type": "sample", "beta_end": 0.01}, "give objective=clean objective.beta_end=0.01"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "give objective=squared"),
        (
            {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
            "give objective=squared objective.timesteps=500",
        ),
        ({"beta_schedule": "squaredcos_cap_v2", "beta_end": 0.03}, "no available objective has these settings"),
        (
            named | {"prediction_type": "sample", "beta_end": 0.0001},
            "no available objective has these settings",
        ),  # below beta_start
    ):
        file.write_text(json.dumps(said))
        with pytest.raises(UserError, match=f": {offered}$"):
            check_scheduler(file, flow)
    file.write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2"}))
    check_scheduler(file, own("objective=squared")["objective"])


@pytest.mark.slow
def test_the_objective_of_an_exports_config_is_proposed(own: Callable[..., Any], tmp_path: Path) -> None:
    """Whatever the settings of its training alone are."""
    file = tmp_path / "config.yaml"
    stored = own("objective=clean", "objective.timesteps=500", "objective.share=0.75")
    file.write_text(yaml.safe_dump({"objective": stored["objective"]}))
    offered = "give objective=clean objective.timesteps=500$"
    with pytest.raises(UserError, match=rf"objective\._target_={Clean._target_}, here .*Flow: {offered}"):
        check_export_config(file, own("objective=flow")["objective"])
    with pytest.raises(UserError, match=f"objective.timesteps=500, here 1000: {offered}"):
        check_export_config(file, own("objective=clean_all")["objective"])
    check_export_config(file, own("objective=clean_all", "objective.timesteps=500")["objective"])
