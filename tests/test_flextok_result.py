"""The numbers of the FlexTok tables in docs/results.md are those of the stored runs and of their comparison."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEYS = {
    "validation flow loss": "val/diffusion",
    "validation token loss (best constant tokens: 0.2882)": "val/token",
    "error from 1 code": "final/reconstruction_mse/1",
    "error from 2 codes": "final/reconstruction_mse/2",
    "error from 4 codes": "final/reconstruction_mse/4",
    "error from 8 codes": "final/reconstruction_mse/8",
    "error from another image's 8 codes": "final/reconstruction_mse_other",
    "error without codes": "final/reconstruction_mse_null",
    "FD(pixels) from 1 code": "final/reconstruction_fd/pixels_1",
    "FD(pixels) from 8 codes": "final/reconstruction_fd/pixels_8",
    **{f"different codes at position {k}": f"final/codes_used_at/{k}" for k in (1, 2, 4, 8)},
    "silhouette of the first code (untrained)": "final/token_silhouette/1",
    "silhouette of 8 codes (untrained)": "final/token_silhouette/8",
    "probe of the first code (untrained)": "final/token_probe/1",
    "probe of 8 codes (untrained)": "final/token_probe/8",
}


SHORTER = {f"{label} (untrained)": label for label in ("probe of the first code", "probe of 8 codes")}


def table(number: int) -> dict[str, list[str]]:
    """Rows of the section's first or second table."""
    section = (ROOT / "docs" / "results.md").read_text().partition("## FlexTok on digits")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = [line.strip("|").split("|") for line in blocks[number].splitlines() if not line.startswith("|---")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def metrics(column: str) -> dict[str, float]:
    arm, _, seed = column.partition(", seed ")
    summary = json.loads((ROOT / "results" / "flextok" / arm / f"seed{seed}" / "summary.json").read_text())
    assert summary["step"] == 1200
    return dict(summary["metrics"])


@pytest.mark.parametrize("label", KEYS)
def test_the_table_is_that_of_the_runs(label: str) -> None:
    rows = table(0)
    assert rows.keys() - {""} == KEYS.keys()
    for column, cell in zip(rows[""], rows[label], strict=True):
        own, key = metrics(column), KEYS[label]
        numbers = re.findall(r"-?\d+\.?\d*", cell.replace("−", "-"))
        keys = [key, key.replace("final/token", "final/untrained_token")][: len(numbers)]
        assert bool(numbers) == (key in own), column
        for written, name in zip(numbers, keys, strict=True):
            assert written == f"{own[name]:.{len(written.partition('.')[2])}f}", (column, name)


def test_the_differences_are_those_of_the_comparison() -> None:
    compared = csv.DictReader((ROOT / "results" / "flextok" / "table.csv").read_text().splitlines())
    arms = {row["arm"]: row for row in compared}
    keys = {SHORTER.get(label, label): key for label, key in KEYS.items()}
    rows = table(1)
    names = rows.pop("difference to `control`")
    assert names == ["aligned", "aligned_half"]
    assert len(rows) == 11
    for label, cells in rows.items():
        for name, cell in zip(names, cells, strict=True):
            numbers = re.findall(r"[-+]\d+\.?\d*", cell.replace("−", "-"))
            places = len(numbers[0].partition(".")[2])
            row = [float(arms[name][f"{keys[label]} {column}"]) for column in ("difference", "low", "high")]
            assert numbers == [f"{value:+.{places}f}" for value in row], (label, name)
            beyond = float(arms[name][f"{keys[label]} p_holm"]) < 0.05
            assert cell.endswith("●" if beyond else "○"), (label, name)
