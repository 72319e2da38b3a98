"""The numbers of NanoDiT's table in docs/results.md are those of the stored runs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[1]
STEPS, LAST = 1500, 200  # of a run; the updates over whose logged losses the table has means


def losses(arm: str, seed: int) -> dict[int, float]:
    """The logged training losses of the last updates, by step."""
    lines = (ROOT / "results" / "nanodit_overfit" / arm / f"seed{seed}" / "metrics.jsonl").read_text().splitlines()
    found = {row["step"]: row["train/diffusion"] for row in map(json.loads, lines) if "train/diffusion" in row}
    assert max(found) == STEPS
    return {step: loss for step, loss in found.items() if step > STEPS - LAST}


def test_the_table_is_that_of_the_runs_and_patches_beat_shuffled_ones() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    section = text.partition("## NanoDiT: where patches are")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d) \| (\d\.\d+) \| (\d\.\d+) \| (\d+) of (\d+) \|$", section, re.MULTILINE)
    assert [int(seed) for seed, *_ in rows] == [0, 1, 2]
    for seed, *cells in rows:
        shuffled, patches = losses("shuffled", int(seed)), losses("patches", int(seed))
        assert shuffled.keys() == patches.keys()
        lower = sum(patches[step] < shuffled[step] for step in patches)
        expected = f"{mean(shuffled.values()):.3f}", f"{mean(patches.values()):.3f}", str(lower), str(len(patches))
        assert tuple(cells) == expected, seed
        assert float(cells[1]) < float(cells[0])


HELD_OUT = ("final/x0_error", "final/x0_error/0.25", "val/diffusion")
NUMBER = re.compile(r"[−+]?\d+\.\d+")


def compared(file: str) -> dict[str, dict[str, str]]:
    """The rows of a table that `urepa.compare` made of results/nanodit, by arm."""
    return {row["arm"]: row for row in csv.DictReader((ROOT / "results" / "nanodit" / file).read_text().splitlines())}


def cells(row: dict[str, str], key: str) -> list[str]:
    """A metric's mean, difference and interval, as the page writes them."""
    found = [f"{float(row[key]):.4f}"]
    if row[f"{key} difference"]:
        found += [f"{float(row[f'{key} {name}']):+.4f}".replace("-", "−") for name in ("difference", "low", "high")]
    return found


def test_the_numbers_of_held_out_photographs_are_those_of_the_comparison() -> None:
    section = (ROOT / "docs" / "results.md").read_text().partition("### Photographs that it has not seen")[2]
    written = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    rows = compared("table.csv")
    assert written.keys() == rows.keys()
    for arm, text in written.items():
        for cell, key in zip(text.split(" | "), HELD_OUT, strict=True):
            assert NUMBER.findall(cell) == cells(rows[arm], key), (arm, key)
            holm = rows[arm][f"{key} p_holm"]
            assert cell.endswith("●" if holm and float(holm) < 0.05 else "○" if holm else cell[-1])
    own = cells(compared("table_own_statistics_shuffled.csv")["own_statistics"], HELD_OUT[0])
    assert f"{own[1]} [{own[2]}, {own[3]}]" in section


def test_the_means_are_those_of_the_stored_runs() -> None:
    for arm, row in compared("table.csv").items():
        runs = sorted((ROOT / "results" / "nanodit" / arm).glob("seed*/summary.json"))
        assert len(runs) == 5
        for key in HELD_OUT:
            found = [json.loads(run.read_text())["metrics"][key] for run in runs]
            assert float(row[key]) == pytest.approx(mean(found), rel=1e-12)
