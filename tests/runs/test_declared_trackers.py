"""The declaration of every tracker, and what it builds, without sending anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.cli import CONF
from urepa.config import own_package
from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.run_protocols import RunSender, Tracker

Compose = Callable[..., dict[str, Any]]
NAMES = sorted(file.stem for file in (Path(CONF) / "tracking").glob("*.yaml"))
BESIDE = {"several": ["+tracking@tracking.trackers.a=csv", "+tracking@tracking.trackers.b=mlflow"]}
EXTRAS = ("tensorboard", "wandb")


@pytest.mark.parametrize("name", NAMES)
def test_a_declared_tracker_is_what_the_protocol_says(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name in EXTRAS:
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    monkeypatch.setenv("WANDB_PROJECT", "urepa")
    declared: Tracker = declaration_of(compose(f"tracking={name}", *BESIDE.get(name, []))["tracking"])
    assert own_package._members(Tracker) <= set(dir(declared))
    declared.check_trusted(tmp_path)
    declared.check_place(tmp_path)
    command = declared.show_command()
    assert command is None or name != "mlflow" or str(declared.uri) in command  # type: ignore[attr-defined]
    (tmp_path / "metrics.jsonl").write_text("")
    sender = declared.build(folder=tmp_path, name="x", params={"seed": 0}, run_tags={})
    assert own_package._members(RunSender) <= set(dir(sender))
    assert sender.where
    assert sender.has_all() == (name == "none"), "nothing was sent yet"
    sender.wake()


def test_no_tracking_sends_nothing(compose: Compose, tmp_path: Path) -> None:
    declared: Tracker = declaration_of(compose("tracking=none")["tracking"])
    declared.prepare()
    sender = declared.build(folder=tmp_path, name="x", params={}, run_tags={})
    sender.start({})
    sender.close("FINISHED", [], {})
    assert sender.where == "nowhere (tracking=none)"
    assert list(tmp_path.iterdir()) == []


def test_a_strangers_server_gets_no_password(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    declared: Tracker = declaration_of(compose("tracking=mlflow", "tracking.uri=http://127.0.0.1:9")["tracking"])
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD of this environment would go there"):
        declared.check_trusted(tmp_path)


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_is_named_before_a_run_begins(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("urepa.runs.trackers.extras_sender.find_spec", lambda _: None)
    declared: Tracker = declaration_of(compose(f"tracking={name}")["tracking"])
    with pytest.raises(UserError, match=f"tracking={name} needs the package {name}, .*pip install 'urepa\\[{name}\\]'"):
        declared.build(folder=tmp_path, name="x", params={}, run_tags={})


@pytest.mark.parametrize("beside", [[], ["+tracking@tracking.trackers.a=csv", "+tracking@tracking.trackers.b=csv"]])
def test_several_trackers_are_of_several_kinds(compose: Compose, tmp_path: Path, beside: list[str]) -> None:
    declared: Tracker = declaration_of(compose("tracking=several", *beside)["tracking"])
    with pytest.raises(UserError, match="tracking=several needs trackers, each of another kind"):
        declared.build(folder=tmp_path, name="x", params={}, run_tags={})


def test_a_strangers_run_is_not_uploaded_with_this_users_key(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    beside = ["+tracking@tracking.trackers.a=csv", "+tracking@tracking.trackers.b=wandb"]
    for overrides in (["tracking=wandb"], ["tracking=several", *beside]):
        declared: Tracker = declaration_of(compose(*overrides)["tracking"])
        with pytest.raises(UserError, match="would be uploaded with your key: set WANDB_PROJECT=urepa too"):
            declared.check_trusted(tmp_path)
    declaration_of(compose("tracking=wandb", "tracking.mode=offline")["tracking"]).check_trusted(tmp_path)
