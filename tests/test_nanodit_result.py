"""The numbers of NanoDiT's table in docs/results.md are those of the stored runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean

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
