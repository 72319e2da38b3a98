"""The door, as a real process: what it prints and writes, and one sentence for each thing that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.doors import CONF

Add = Callable[..., None]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "WORLD_SIZE", "RANK")}


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "urepa.compare", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


def test_a_study(add: Add, tmp_path: Path) -> None:
    """Everything is written; the baseline is chosen with a comma and an equals sign, without extra quotes."""
    add(changes={"loss.lambda_max": 0.0}, name="cifar10,loss.lambda_max=0")
    add(values=lambda seed: {"val/token": 0.3 + 0.001 * seed})
    done = compare(tmp_path, "baseline=loss.lambda_max=0,head.depth=2", "report=deep/report", "out=all.json")
    assert done.returncode == 0, done.stderr
    assert "baseline: lambda_max=0 (chosen with baseline=)" in done.stdout
    assert "Token loss: differs: lambda_max=0.5 (−0.2" in done.stdout
    report = tmp_path / "deep" / "report"
    figures = {file.name for file in (report / "figures").iterdir()}
    assert {"index.html", "table.csv", "table.md", "table.tex"} < {file.name for file in report.iterdir()}
    assert {"difference_val_token.png", "difference_val_token.pdf", "curve_train_token.png"} < figures
    assert json.loads((tmp_path / "all.json").read_text())["arms"][1]["differences"]["val/token"]["mark"] == "●"


def test_every_arm_has_its_place(compose: Callable[..., dict[str, Any]]) -> None:
    there = {file.stem for file in (Path(CONF) / "ablation").glob("*.yaml")}
    order = compose(root="compare")["order"]
    assert there <= set(order)
    assert len(order) == len(set(order))


def test_one_run(add: Add, tmp_path: Path) -> None:
    add(seeds=(0,))
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "There is one run only, so nothing is compared: its values are shown as they are." in done.stdout
    assert "There is one run only" in (tmp_path / "report" / "index.html").read_text()


def test_runs_without_validation(add: Add, tmp_path: Path) -> None:
    add(seeds=(0, 1))
    add("arm", {"head.depth": 1}, seeds=(0, 1))
    for file in tmp_path.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if not k.startswith(("val/", "final/", "floor/"))} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "No run has logged a validation (val/...), so no loss is compared" in done.stdout
    assert (tmp_path / "report" / "figures" / "curve_train_token.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs=nowhere"], "there are no runs in nowhere"),
        (["experiment=track_a"], "none of the 2 runs matches experiment=track_a. There are experiment: cifar10"),
        (["ablation=[a,b]"], "none of the 2 runs matches ablation=a,b"),
        (["tag=set=a,b=c"], "none of the 2 runs matches tag=set=a,b=c"),
        (["baseline=nobody"], "baseline=nobody names no arm"),
        (["store=sqlite:///none.db"], "there is no MLflow store at none.db"),
        (["store=sqlite:///none.db", "runs=outputs"], "store= and runs= are two sources"),
        (["reports=x"], "there is no key 'reports' (did you mean 'report'?)"),
    ],
)
def test_one_sentence(add: Add, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    add(seeds=(0, 1))
    assert sentence in refused(compare(tmp_path, *arguments))
    assert not (tmp_path / "report").exists()


def test_nothing_finished(add: Add, tmp_path: Path) -> None:
    add(seeds=(0,), finished=False)
    assert "none of the 1 runs is finished" in refused(compare(tmp_path))
