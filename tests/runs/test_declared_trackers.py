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


@pytest.mark.parametrize("name", NAMES)
def test_a_declared_tracker_is_what_the_protocol_says(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    declared: Tracker = declaration_of(compose(f"tracking={name}")["tracking"])
    assert own_package._members(Tracker) <= set(dir(declared))
    declared.check_trusted(tmp_path)
    declared.check_place(tmp_path)
    command = declared.show_command()
    assert command is None or str(declared.uri) in command  # type: ignore[attr-defined]
    (tmp_path / "metrics.jsonl").write_text("")
    sender = declared.build(folder=tmp_path, name="x", params={"seed": 0}, run_tags={})
    assert own_package._members(RunSender) <= set(dir(sender))
    assert sender.where
    assert sender.has_all() == (command is None), "nothing was sent yet"
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
