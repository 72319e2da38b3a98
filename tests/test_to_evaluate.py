"""What `urepa.evaluate` refuses in a request, and accepts in a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.evaluate import evaluation_config
from urepa.runs.run_folder import RunFolder


@pytest.mark.slow
def test_numbers_of_a_finished_run_are_accepted_and_those_of_a_request_are_checked(
    tmp_path: Path, compose: Callable[..., dict[str, Any]]
) -> None:
    config = compose("tracking=none", "optimizer.lr.backbone=1e20", "trainer.threads=4096")
    config["loss"]["taps"]["mid"] = inf
    config["evaluation"]["samples"]["guidance"] = -1.0
    RunFolder(tmp_path).store_config(config)
    summary = {"experiment": "quickstart", "ablation": "baseline", "seed": 0, "metrics": {}, "seconds": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"step": config["trainer"]["max_steps"]}))
    opened = evaluation_config(compose(f"run='{tmp_path}'", root="evaluate"))
    assert (opened["trainer"], opened["loss"]) == (config["trainer"], config["loss"])
    asked = compose(f"run='{tmp_path}'", "evaluation=digits", root="evaluate")
    assert evaluation_config(asked)["evaluation"] == asked["evaluation"]
    asked["evaluation"]["samples"]["guidance"] = nan
    with pytest.raises(UserError, match="^evaluation.samples.guidance=nan: give 0 or more, a finite number"):
        evaluation_config(asked)


@pytest.mark.slow
def test_credentials_are_not_sent_to_a_server_that_only_a_config_names(
    tmp_path: Path, compose: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = "http://127.0.0.1:1"
    config = compose(f"tracking.uri={server}")
    RunFolder(tmp_path).store_config(config)
    summary = {"experiment": "quickstart", "ablation": "baseline", "seed": 0, "metrics": {}, "seconds": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"step": config["trainer"]["max_steps"]}))
    asked = compose(f"run='{tmp_path}'", root="evaluate")
    assert evaluation_config(asked)["tracking"]["uri"] == server
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_TOKEN .* set MLFLOW_TRACKING_URI={server}"):
        evaluation_config(asked)
    assert evaluation_config(asked | {"tracking": compose("tracking=none")["tracking"]})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert evaluation_config(asked)["tracking"]["uri"] == server
