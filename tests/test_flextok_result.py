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
    "distance(efficientnet_lite2) from 1 code": "final/reconstruction_distance/efficientnet_lite2_1",
    "distance(efficientnet_lite2) from 8 codes": "final/reconstruction_distance/efficientnet_lite2_8",
    "distance(efficientnet_lite2) from another image's 8 codes": (
        "final/reconstruction_distance_other/efficientnet_lite2"
    ),
    **{f"different codes at position {k}": f"final/codes_used_at/{k}" for k in (1, 2, 4, 8)},
    "silhouette of the first code (untrained)": "final/token_silhouette/1",
    "silhouette of 8 codes (untrained)": "final/token_silhouette/8",
    "probe of the first code [95 %] (untrained)": "final/token_probe/1",
    "probe of 8 codes [95 %] (untrained)": "final/token_probe/8",
}


SHORTER = {
    f"{label}{ending}": label
    for label, ending in (
        ("silhouette of 8 codes", " (untrained)"),
        ("probe of the first code", " [95 %] (untrained)"),
        ("probe of 8 codes", " [95 %] (untrained)"),
    )
}


def table(number: int) -> dict[str, list[str]]:
    """Rows of the section's first or second table."""
    section = (ROOT / "docs" / "results.md").read_text().partition("## FlexTok on digits")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = [line.strip("|").split("|") for line in blocks[number].splitlines() if not line.startswith("|---")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def metrics(column: str) -> dict[str, float]:
    arm, _, seed = column.partition(", seed ")
    summary = json.loads((ROOT / "results" / "flextok" / arm / f"seed{seed}" / "summary.json").read_text())
    assert summary["step"] == 2400
    return dict(summary["metrics"])


@pytest.mark.parametrize("label", KEYS)
def test_the_table_is_that_of_the_runs(label: str) -> None:
    rows = table(0)
    assert rows.keys() - {""} == KEYS.keys()
    for column, cell in zip(rows[""], rows[label], strict=True):
        own, key = metrics(column), KEYS[label]
        numbers = re.findall(r"-?\d+\.?\d*", cell.replace("−", "-"))
        untrained = key.replace("final/token", "final/untrained_token")
        interval = [key.replace("probe/", f"probe_{end}/") for end in ("low", "high")] if "[" in cell else []
        keys = [key, *interval, untrained][: len(numbers)]
        assert bool(numbers) == (key in own), column
        for written, name in zip(numbers, keys, strict=True):
            assert written == f"{own[name]:.{len(written.partition('.')[2])}f}", (column, name)


def test_the_differences_are_those_of_the_comparison() -> None:
    compared = csv.DictReader((ROOT / "results" / "flextok" / "table.csv").read_text().splitlines())
    arms = {row["arm"]: row for row in compared}
    keys = {SHORTER.get(label, label): key for label, key in KEYS.items()}
    rows = table(1)
    names = rows.pop("difference to `control`")
    assert names == ["aligned"]
    assert len(rows) == 15
    for label, cells in rows.items():
        for name, cell in zip(names, cells, strict=True):
            numbers = re.findall(r"[-+]\d+\.?\d*", cell.replace("−", "-"))
            places = len(numbers[0].partition(".")[2])
            row = [float(arms[name][f"{keys[label]} {column}"]) for column in ("difference", "low", "high")]
            assert numbers == [f"{value:+.{places}f}" for value in row], (label, name)
            beyond = float(arms[name][f"{keys[label]} p_holm"]) < 0.05
            assert cell.endswith("●" if beyond else "○"), (label, name)


def test_errors_fall_with_every_code_and_the_probe_excludes_chance() -> None:
    for arm in ("control", "aligned"):
        for seed in range(3):
            own = metrics(f"{arm}, seed {seed}")
            errors = [own[f"final/reconstruction_mse/{count}"] for count in (1, 2, 4, 8)]
            assert errors == sorted(errors, reverse=True)
            assert len(set(errors)) == 4
            assert errors[-1] < min(own["final/reconstruction_mse_other"], own["final/reconstruction_mse_null"])
            for count in (1, 2, 4, 8):
                assert own[f"final/token_probe_low/{count}"] > own["final/token_probe_chance"] == 0.1
