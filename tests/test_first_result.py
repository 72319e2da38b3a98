"""The figures on README's first screen are those of table.csv, which `urepa.compare` makes of results/."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from math import isclose
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).parents[1]
POSITIONS = ROOT / "results" / "positions"
README, DOCS = (ROOT / "README.md").read_text(), (ROOT / "docs" / "results.md").read_text()
BASELINES = {"table.csv": "control", "table_sincos_control.csv": "sincos_control"}
TABLES = {name: control for name, control in BASELINES.items() if (POSITIONS / name).exists()}
SEEDS = 3
ARMS = {
    ("learned", "control"): ("table.csv", "control"),
    ("learned", "aligned"): ("table.csv", "aligned"),
    ("fixed", "control"): ("table.csv", "sincos_control"),
    ("fixed", "aligned"): ("table.csv", "sincos_aligned"),
}
STORED = {folder.name for folder in POSITIONS.iterdir() if folder.is_dir()}
DIFFERENCES = {"learned": ("table.csv", "aligned"), "fixed": ("table_sincos_control.csv", "sincos_aligned")}
METRICS = ("val/diffusion", "final/fd/cifar_cnn", "final/fd/efficientnet_lite2", "final/fd/pixels")
NUMBER = re.compile(r"[−-]?\d[\d.,]*\d|\d")


def rows_of(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="") as lines:
        return {row["arm"]: row for row in csv.DictReader(lines)}


def numbers_of(text: str) -> list[str]:
    return [found.group().replace("−", "-") for found in NUMBER.finditer(text)]


def as_written(value: str, written: str) -> str:
    """The value with as many decimals as README writes."""
    return f"{float(value):.{len(written.partition('.')[2])}f}"


def on_the_page() -> Iterator[tuple[str, list[str]]]:
    """README's table: the row labels and the cells."""
    lines = README.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("| positions | "))
    positions = ""
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            return
        first, kind, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        positions = first.split()[0] if first else positions
        yield f"{positions} {kind.split()[0]}", cells


def test_every_number_of_the_table_is_in_table_csv() -> None:
    tables = {name: rows_of(POSITIONS / name) for name in TABLES}
    page = dict(on_the_page())
    rows = {f"{positions} {kind}" for (positions, kind), (_, arm) in ARMS.items() if arm in STORED}
    assert set(page) == rows | {
        f"{positions} difference" for positions, (_, arm) in DIFFERENCES.items() if arm in STORED
    }
    for name, cells in page.items():
        positions, kind = name.split()
        differ = kind == "difference"
        table, arm = DIFFERENCES[positions] if differ else ARMS[positions, kind]
        row = tables[table][arm]
        for metric, cell in zip(METRICS, cells, strict=True):
            columns = ("difference", "low", "high") if differ else ("", "sd")
            written = numbers_of(cell)
            there = [row[f"{metric} {column}".strip()] for column in columns]
            assert written == [as_written(v, w) for v, w in zip(there, written, strict=True)], (name, metric)
            if differ:
                p, holm = float(row[f"{metric} p"]), float(row[f"{metric} p_holm"])
                assert cell[-1] == ("●" if holm < 0.05 else "◐" if p < 0.05 else "○"), (name, metric)


def test_steps_and_minutes_are_those_of_table_csv() -> None:
    """In the sentence of docs/results.md: steps and minutes until the aligned arm reaches the final value of its
    control."""
    row = rows_of(POSITIONS / "table.csv")["aligned"]
    control = rows_of(POSITIONS / "table.csv")["control"]
    words = " ".join(DOCS.split())
    for metric, label in (("val/diffusion", "loss"), ("final/fd/cifar_cnn", "FD(cifar_cnn)")):
        steps, minutes = (float(row[f"{metric} {what} to baseline"]) for what in ("steps", "minutes"))
        cached = minutes + float(row["cache minutes"])
        sentence = (
            f"the control's last {label} after {steps:.0f} of 1,000 steps, {minutes:.1f} minutes ({cached:.1f} with"
        )
        assert sentence in words
    assert f"of the control's {float(control['minutes']):.1f}" in words


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_compare_makes_these_tables_of_the_stored_runs(table: str, tmp_path: Path) -> None:
    """With README's command; figures that a library computes may differ between its versions."""
    control = TABLES[table]
    for folder in POSITIONS.iterdir():
        if folder.is_dir() and (control == "control" or folder.name.startswith("sincos")):
            shutil.copytree(folder, tmp_path / "runs" / folder.name)
    arms = [arm for _, arm in ARMS.values() if (tmp_path / "runs" / arm).is_dir()]
    names = ",".join(f"'{arm}={arm}'" for arm in arms)
    order = ",".join(arms)
    arguments = ["runs=runs", f"names=[{names}]", f"order=[{order}]", f"baseline={control}"]
    forks.run(["-m", "urepa.compare", *arguments], tmp_path).check_returncode()
    made, stored = rows_of(tmp_path / "report" / "table.csv"), rows_of(POSITIONS / table)
    assert list(made) == list(stored) == arms
    for arm, row in stored.items():
        assert row.keys() == made[arm].keys()
        for key, value in row.items():
            other = made[arm][key]
            assert other == value or isclose(float(other), float(value), rel_tol=1e-6), (arm, key)


def test_stored_runs_are_complete_and_of_one_commit() -> None:
    summaries = [json.loads(file.read_text()) for file in sorted(POSITIONS.glob("*/seed*/summary.json"))]
    assert len(summaries) == SEEDS * len(STORED)
    assert {s["step"] for s in summaries} == {1000}
    assert {(s["git_commit"], s["code_state"]) for s in summaries} == {(summaries[0]["git_commit"], "clean")}
    assert summaries[0]["git_commit"][:7] in DOCS
    assert not list(POSITIONS.glob("**/*.safetensors"))
