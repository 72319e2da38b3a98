"""The command as a real process: what it prints and writes, and one sentence for each missing input."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edge
import pytest
from forks import run

from urepa.cli import CONF
from urepa.compare import remove_old_figures
from urepa.reports.comparison.draw_panels import Drawn
from urepa.reports.comparison.figures import panels
from urepa.reports.comparison.page import page

pytestmark = pytest.mark.long

Add = Callable[..., None]
FEW = ("val/diffusion", "val/token", "train/token", "final/tap_knn", "floor/")  # metrics, where the text is looked at


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(["-m", "urepa.compare", *arguments], folder)


def refused(done: edge.Done) -> str:
    assert done.code == 1, done.out + done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.err
    return line


@pytest.mark.slow
def test_a_study(add: Add, tmp_path: Path) -> None:
    """All files are written; the baseline is chosen with a comma and an equals sign, without extra quotes."""
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


def test_every_arm_has_a_place_in_the_order(compose: Callable[..., dict[str, Any]]) -> None:
    there = {file.stem for file in (Path(CONF) / "ablation").glob("*.yaml")}
    order = compose(root="compare")["order"]
    assert there <= set(order)
    assert len(order) == len(set(order))


@pytest.mark.slow
def test_one_run(add: Add, tmp_path: Path) -> None:
    add(seeds=(0,), only=FEW)
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "There is one run only, so nothing is compared: its values are shown as they are." in done.stdout
    assert "There is one run only" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.slow
def test_runs_without_validation(add: Add, tmp_path: Path) -> None:
    add(seeds=(0, 1), only=FEW)
    add("arm", {"head.depth": 1}, seeds=(0, 1), only=FEW)
    for file in tmp_path.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if not k.startswith(("val/", "final/", "floor/"))} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "No run has logged a validation (val/...), so no loss is compared" in done.stdout
    assert (tmp_path / "report" / "figures" / "curve_train_token.png").exists()


@pytest.mark.slow
def test_folders_without_a_run_and_shorter_runs_are_reported(
    add: Add, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A refused command leaves a config alone; the same folder contains a sweep of another length."""
    add(seeds=(0, 1), only=FEW)
    add("short", {"trainer.max_steps": 50}, seeds=(0, 1), only=FEW)
    add("refused", seeds=(0, 1), only=FEW)
    for seed in (0, 1):
        for name in ("metrics.jsonl", "summary.json"):
            (tmp_path / "outputs" / "cifar10+refused" / f"seed{seed}" / name).unlink()
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    refused_ones = "(refused, or just begun): 2 (cifar10+refused/seed0, cifar10+refused/seed1)."
    page, table = ((tmp_path / "report" / name).read_text() for name in ("index.html", "table.md"))
    assert "The arms are not equally long (1 of 50 steps, 1 of 600 steps)" in table
    for text in (done.stdout, page):
        assert refused_ones in text
        assert "The arms are not equally long (1 of 50 steps, 1 of 600 steps)" in text
    assert "unfinished" not in done.stdout
    for file in tmp_path.rglob("metrics.jsonl"):
        file.unlink()
    assert "none of the 6 runs has logged a step yet" in refused(edge.run(capfd, "urepa.compare", [], tmp_path))


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["experiment=track_a"], "experiment=track_a: no run here has that; there are: cifar10"),
        (["ablation=[baseline,b]"], "ablation=b: no run here has that; there are: baseline"),
        (["tag=set=a,b=c"], "tag=set=a,b=c: no run here has a tag 'set'; there are: "),
        (["tag=seed=2"], "tag=seed=2: no run's tag 'seed' is that; there are: 0, 1"),
        (["baseline=nobody"], "baseline=nobody names no arm"),
        (["publish=true"], "publish=true puts the report into the MLflow store that it is of: give store=URI"),
    ],
)
def test_each_missing_input_is_reported_in_one_sentence(
    add: Add, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    add(seeds=(0, 1))
    assert sentence in refused(edge.run(capfd, "urepa.compare", arguments, tmp_path))
    assert not (tmp_path / "report").exists()


def test_figures_of_an_earlier_report_are_removed(add: Add, results: Callable[..., Any], tmp_path: Path) -> None:
    """Those that its page lists; files of the user stay."""
    add(seeds=(0,), points=2)
    figures = tmp_path / "figures"
    figures.mkdir()
    kept, gone = panels(results())[:2]
    drawn = [Drawn(panel, b"", b"", "<svg></svg>") for panel in (kept, gone)]
    (tmp_path / "index.html").write_text(page(results(), drawn, []))
    for name in (f"{kept.name}.png", f"{gone.name}.png", f"{gone.name}.pdf", "mine.png"):
        (figures / name).write_bytes(b"")
    remove_old_figures(tmp_path, {kept.name})
    assert {file.name for file in figures.iterdir()} == {f"{kept.name}.png", "mine.png"}


def test_nothing_finished(add: Add, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add(seeds=(0,), finished=False)
    assert "none of the 1 runs can be compared" in refused(edge.run(capfd, "urepa.compare", [], tmp_path))
