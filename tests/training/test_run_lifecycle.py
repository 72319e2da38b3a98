"""A run in this process, whatever the environment; and its summary after several evaluations: only the values of the
last one, whichever evaluation wrote them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from urepa.core.errors import UserError
from urepa.reports.comparison.read_runs import find_folders, load_curves
from urepa.runs import checkpoint
from urepa.runs.metrics import MetricsLog, last_values, number, read_rows
from urepa.runs.mlflow_run import points
from urepa.runs.run_folder import RunFolder
from urepa.training.run_lifecycle import Session, _drop_none, _update_owners, accelerate_for


def test_values_that_an_evaluation_no_longer_reports_are_withdrawn() -> None:
    before = {"generation": ["final/fd/pixels", "floor/fd/pixels"], "knn": ["final/knn/tap", "final/knn/tap_by_t/0100"]}
    now = {"generation": ["final/fd/pixels"]}
    assert _update_owners(before, now) == (now | {"knn": before["knn"]}, {"floor/fd/pixels"})
    assert _update_owners(before, {}) == (before, set()), "what failed keeps its last values"
    assert _update_owners({}, now) == (now, set())


def test_a_key_belongs_to_the_evaluation_that_wrote_it_last() -> None:
    own, withdrawn = _update_owners({"generation": ["final/fd/pixels"]}, {"inception": ["final/fd/pixels"]})
    assert own == {"generation": [], "inception": ["final/fd/pixels"]}
    assert not withdrawn
    assert _update_owners(own, {"generation": ["final/fd/dino"]})[1] == set(), "inception's value stays"


@pytest.mark.slow
def test_null_withdraws_a_value(tmp_path: Path, compose: Callable[..., Any]) -> None:
    log = MetricsLog(tmp_path / "run" / "seed0" / "metrics.jsonl")
    log.path.parent.mkdir(parents=True)
    log.append({"step": 4, "final/fd/pixels": 2.0, "floor/fd/pixels": 1.0})
    log.append({"step": 4, "final/fd/pixels": 3.0, "floor/fd/pixels": None})
    rows = read_rows(log.path)
    assert _drop_none(last_values(rows, 4)) == {"final/fd/pixels": 3.0}
    assert math.isnan(number(None))
    assert {m.key: str(m.value) for m in points(rows[1], pytest.fail)} == {
        "final/fd/pixels": "3.0",
        "floor/fd/pixels": "nan",
    }
    assert json.loads(log.path.read_text().splitlines()[1])["floor/fd/pixels"] is None
    RunFolder(log.path.parent).store_config(compose("tracking=none"))
    (run,) = load_curves(find_folders(str(tmp_path)))
    assert run.last("final/fd/pixels") == 3.0
    floor = run.last("floor/fd/pixels")
    assert floor is not None
    assert math.isnan(floor), "as MLflow has it"


DIVIDES = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}
SETTINGS = DIVIDES | {
    "ACCELERATE_MIXED_PRECISION": "fp16",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_DEBUG_MODE": "perhaps",
    "FSDP_VERSION": "2",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
}


def train(compose: Callable[..., Any], folder: Path, *overrides: str) -> dict[str, Any]:
    """The weights after a run of two steps."""
    config = compose("trainer.max_steps=2", "evaluation=none", *overrides)
    Session(OmegaConf.create(config), str(folder), [], choices={}).run()
    return load_file(checkpoint.require(folder).folder / "weights.safetensors")


@pytest.mark.slow
def test_variables_of_accelerate_change_no_weight(
    tmp_path: Path,
    compose: Callable[..., Any],
    small_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = (*small_run, "trainer.max_steps=2")
    expected = train(compose, tmp_path / "without" / "seed0", *few)
    capsys.readouterr()
    for folder, settings in (("divides", DIVIDES), ("all", SETTINGS)):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        found = train(compose, tmp_path / folder / "seed0", *few)
        assert all(torch.equal(found[name], weight) for name, weight in expected.items()), folder
        printed = capsys.readouterr().out.splitlines()
        (line,) = [one for one in printed if one.startswith("ignored in the environment: ")]
        assert all(f"{name}={value}" in line for name, value in settings.items())


def test_the_environment_cannot_enable_tf32(compose: Callable[..., Any]) -> None:
    """TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 sets torch's initial precision to "high"."""
    from accelerate.state import AcceleratorState

    torch.set_float32_matmul_precision("high")
    accelerate_for(compose()["trainer"])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "said"),
    [("loss.lambda_max=inf", "validation"), ("optimizer.lr.backbone=1e30", "not finite")],
)
def test_a_non_finite_run_has_failed(
    tmp_path: Path, compose: Callable[..., Any], small_run: list[str], override: str, said: str
) -> None:
    """Whatever produced the non-finite number: there is no summary, and MLflow has the run as FAILED."""
    from mlflow import MlflowClient

    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "run" / "seed0"
    own = [o for o in small_run if o != "tracking=none"]
    config = compose(*own, f"tracking.uri={uri}", "evaluation=none", override, "trainer.max_skipped=20")
    for _ in range(2):  # the same command fails again
        with pytest.raises(UserError, match=said):
            Session(OmegaConf.create(config), str(folder), [], choices={}).run()
        assert not (folder / "summary.json").exists()
    (run,) = MlflowClient(uri).search_runs(["1"])
    assert run.info.status == "FAILED"
