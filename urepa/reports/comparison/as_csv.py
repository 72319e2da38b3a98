"""table.csv: the numbers of a comparison, for spreadsheets and tests."""

from __future__ import annotations

import csv
import io
from math import isfinite
from typing import Any

from urepa.core.escaping import spreadsheet_text
from urepa.reports.comparison.results import ArmRow, Results
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.tables import recorded_costs


def as_csv(results: Results) -> str:
    """One row per arm, in full precision. A text that a spreadsheet would interpret as a formula is prefixed with an
    apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [metric.key for metric in results.metrics]
    costs = recorded_costs(results)
    statistics = ("difference", "low", "high", "p", "p_holm", "bootstrap_low", "bootstrap_high", "pairing")
    headers = ["arm", "experiment", "ablation", "changed", "seeds"]
    headers += [f"{key}{ending}" for key in keys for ending in ("", " sd", " n", *(f" {name}" for name in statistics))]
    headers += [*results.bins, *costs, *_way_headers(results), "notes"]
    writer.writerow(headers)
    for row in results.rows:
        run = row.arm.first
        changed = "; ".join(map(str, row.arm.changes))
        line: list[Any] = [row.arm.label, run.experiment, run.ablation, changed, " ".join(map(str, row.arm.runs))]
        for key in keys:
            line += [*_numbers(row.cells[key]), row.cells[key].n if row.cells[key].has_value else ""]
            found = row.differences.get(key)
            if found is None:
                line += [""] * len(statistics)
            else:
                low, high = found.bootstrap or ("", "")
                values = [found.mean, found.low, found.high, found.p, found.p_holm]
                line += [*(v if isfinite(v) else "" for v in values), low, high, found.how]
        line += [_numbers(row.cells[key])[0] for key in results.bins]
        line += [_numbers(row.costs[name])[0] for name in costs]
        line += [*_way_numbers(results, row), "; ".join(row.notes)]
        writer.writerow([spreadsheet_text(v) if isinstance(v, str) else v for v in line])
    return text.getvalue()


def _way_headers(results: Results) -> list[str]:
    """Headers of the columns on training length: total steps and minutes, and for each metric those until the arm
    reaches the baseline's final value."""
    headers = ["steps", "minutes", "minutes sd", "cache minutes"]
    for course in results.races:
        for what in ("steps", "minutes"):
            headers += [f"{course.metric.key} {what} to baseline", f"{course.metric.key} {what} to baseline sd"]
        headers += [f"{course.metric.key} to baseline n", f"{course.metric.key} to baseline never"]
    return headers


def _way_numbers(results: Results, row: ArmRow) -> list[Any]:
    label, clock = row.arm.label, results.clock
    line: list[Any] = [row.arm.config["trainer.max_steps"], *_numbers(clock.whole[label])]
    line.append(_numbers(clock.caches[label])[0])
    for course in results.races:
        line += [*_numbers(course.reached[label]), *_numbers(clock.reached[course.metric.key][label])]
        line += [course.reached[label].n, course.never[label]]
    return line


def _numbers(cell: Cell) -> tuple[Any, Any]:
    return (cell.mean if cell.has_value else "", cell.sd if cell.has_value and isfinite(cell.sd) else "")
