"""The gap between training and validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_tables import Elements

from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.tables import gaps_table, markdown
from urepa.reports.comparison.validation_gap import gap_texts, gaps

Add, Summarise = Callable[..., None], Callable[..., Results]


def rewrite(tmp_path: Path, change: Callable[[dict[str, float]], None]) -> None:
    """Changes every row of every run."""
    for file in tmp_path.rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            change(row)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_gap_is_computed_per_seed_over_the_last_tenth_before_the_last_validation(
    add: Add, results: Summarise, tmp_path: Path
) -> None:
    """By hand: rows at 1, 6, 11, ..., of 600 steps, of which 541 to 600 count, and a validation at 600."""
    add(seeds=(0, 1, 2), points=120, values=lambda seed: {"val/token": 0.5 + 0.1 * seed})
    expected = []
    for seed in (0, 1, 2):
        file = tmp_path / "outputs" / "cifar10+baseline" / f"seed{seed}" / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        train = [row["train/token"] for row in rows if "train/token" in row and row["step"] > 540]
        assert len(train) == 12
        expected.append(0.5 + 0.1 * seed - np.mean(train))
    gap = gaps(results())["baseline"]["token"]
    assert gap.gap.mean == pytest.approx(np.mean(expected))
    assert gap.gap.sd == pytest.approx(np.std(expected, ddof=1))
    assert gap.validation == Cell(pytest.approx(0.6), pytest.approx(0.1), 3)
    assert gap.share == pytest.approx(np.mean(expected) / (0.6 - np.mean(expected)))


def test_rows_after_the_last_validation_do_not_count(add: Add, results: Summarise, tmp_path: Path) -> None:
    """A validation at step 300 of 600: the training loss is that of the tenth before it."""
    add(seeds=(0,), points=120)

    def change(row: dict[str, float]) -> None:
        if "train/token" in row:
            row["train/token"] = 1.0 if 265 < row["step"] <= 300 else 9.0
        row.pop("val/token", None)
        if 296 <= row["step"] <= 300:
            row["val/token"] = 1.25

    rewrite(tmp_path, change)
    gap = gaps(results())["baseline"]["token"]
    assert (gap.train.mean, gap.validation.mean, gap.gap.mean) == (1.0, 1.25, 0.25)
    assert gap_texts(gap) == ("1.000", "1.250", "+0.2500 (+25 %)")


def test_a_total_under_a_lambda_that_changes_has_no_gap(add: Add, results: Summarise, tmp_path: Path) -> None:
    """In λ's warm-up every row's total is another sum; the other terms have a gap."""
    add(seeds=(0,), points=120)
    rewrite(tmp_path, lambda row: row.update({"train/lambda": row["step"] / 1000}) if "train/lambda" in row else None)
    found = gaps(results())["baseline"]
    assert gap_texts(found["total"]) == ("λ changes",) * 3
    assert found["token"].gap.has_value


def test_an_arm_without_a_term_has_an_empty_cell(add: Add, results: Summarise, tmp_path: Path) -> None:
    add(seeds=(0,))
    aligned = [f"{kind}/{term}" for kind in ("train", "val") for term in ("token", "manifold")]
    rewrite(tmp_path, lambda row: [row.pop(key, None) for key in aligned])
    assert list(gaps(results())["baseline"]) == ["total", "diffusion"], "no column where no arm has the term"
    add("arm", {"head.depth": 1}, seeds=(0,))
    assert gap_texts(gaps(results())["baseline"]["token"]) == ("–", "–", "–")


def test_the_table_is_on_the_page_and_in_markdown(add: Add, results: Summarise) -> None:
    add()
    add("arm", {"head.depth": 1})
    found = results()
    table = gaps_table(found)
    assert [row[:2] for row in table.rows][:5] == [
        *(("baseline", term) for term in ("total", "diffusion", "token", "manifold")),
        ("arm", "total"),
    ]
    assert "Train, validation and their gap" in markdown(found)
    words = " ".join(Elements(page(found, [], [])).words)
    assert "the mean of the rows logged in the last 10 % of the steps before the last validation" in words
    for text in table.rows[5][2:4]:
        assert text.split(" ± ")[0] in words
