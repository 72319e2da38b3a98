"""How often does a comparison find a difference where there is none? Seeds of one arm against other seeds of it:

    python tests/reports/comparison/null_studies.py RUNS --seeds 3

RUNS is a folder with one arm of many seeds (RUNS/NAME/seed*/summary.json). Of 2,000 random studies, each of as many
pairs of different seeds as asked for, the share whose paired 95 % interval excludes 0 is printed for each metric; it
should be near 5 %. The studies overlap: from 24 runs of normal values a share has a standard error of 1 %, from 48 of
0.6 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from urepa.reports.comparison.statistics import paired_interval

STUDIES = 2000
MEASURED = ("val/", "final/")


def shares(values: dict[str, NDArray[np.float64]], seeds: int, rng: np.random.Generator) -> dict[str, float]:
    """Of each metric, from its values over all runs, the share of random studies whose interval excludes 0."""
    runs = len(next(iter(values.values())))
    assert runs >= 2 * seeds, "a study takes two different runs for each pair"
    drawn = np.array([rng.permutation(runs)[: 2 * seeds] for _ in range(STUDIES)])
    found = {}
    for name, of_runs in values.items():
        one, other = of_runs[drawn[:, :seeds]], of_runs[drawn[:, seeds:]]
        interval = paired_interval(one - other)
        found[name] = float(np.mean((interval.low > 0) | (interval.high < 0)))
    return found


def read_values(folder: Path) -> dict[str, NDArray[np.float64]]:
    """The metrics that all runs have, over the runs; without those that are the same in all of them."""
    metrics = [json.loads(file.read_text())["metrics"] for file in sorted(folder.glob("*/seed*/summary.json"))]
    shared = set.intersection(*(set(one) for one in metrics))
    names = sorted(name for name in shared if name.startswith(MEASURED))
    values = {name: np.array([one[name] for one in metrics], np.float64) for name in names}
    return {name: of_runs for name, of_runs in values.items() if np.ptp(of_runs) > 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    values = read_values(asked.runs)
    print(f"{len(next(iter(values.values())))} runs, {STUDIES} studies of {asked.seeds} pairs")
    for name, share in shares(values, asked.seeds, np.random.default_rng(0)).items():
        print(f"{100 * share:5.1f} %  {name}")


if __name__ == "__main__":
    main()
