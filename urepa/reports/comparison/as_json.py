"""A comparison as JSON, for other programs."""

from __future__ import annotations

from math import isfinite
from typing import Any

from urepa.reports.comparison.findings import findings
from urepa.reports.comparison.first_sentence import cautions, verdict
from urepa.reports.comparison.predictors import predictors
from urepa.reports.comparison.results import PAIRED, ArmRow, Difference, Results
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.validation_gap import Gap, gaps


def as_json(results: Results) -> dict[str, Any]:
    """All results as plain data. Values that are not finite become null."""
    between = gaps(results)
    return {
        "verdict": verdict(results),
        "cautions": cautions(results),
        "baseline": results.study.baseline.label,
        "why_baseline": results.study.why_baseline,
        "arms": [_arm(row, between.get(row.arm.label, {})) for row in results.rows],
        "courses": {
            course.metric.key: {
                "steps": course.steps,
                "cells": {label: [_cell(c) for c in cells] for label, cells in course.cells.items()},
                "reached": {label: _cell(c) | {"never": course.never[label]} for label, c in course.reached.items()},
            }
            for course in results.courses
        },
        "clock": {
            "minutes": {label: _cell(c) for label, c in results.clock.whole.items()},
            "cache_minutes": {label: _cell(c) for label, c in results.clock.caches.items()},
            "reached": {
                key: {label: _cell(c) for label, c in by_label.items()}
                for key, by_label in results.clock.reached.items()
            },
        },
        "references": {key: _cell(c) for key, c in results.references.items()},
        "findings": findings(results),
        "predictors": [
            {
                "early": one.early.key,
                "step": one.step,
                "gain": one.gain.key,
                "arms": one.arms,
                "rho": _finite(one.rho),
                "p": _finite(one.p),
                "p_holm": _finite(one.p_holm),
            }
            for one in predictors(results)
        ],
        "apart": [{"run": apart.run.name, "reason": apart.reason} for apart in results.study.apart],
    }


def _arm(row: ArmRow, between: dict[str, Gap]) -> dict[str, Any]:
    """The row of one arm, with its gaps between training and validation by loss term."""
    return {
        "label": row.arm.label,
        "experiment": row.arm.first.experiment,
        "ablation": row.arm.first.ablation,
        "runs": {str(seed): run.name for seed, run in row.arm.runs.items()},
        "changes": [{"key": c.key, "baseline": c.baseline, "here": c.here} for c in row.arm.changes],
        "cells": {key: _cell(c) for key, c in row.cells.items()},
        "costs": {name: _cell(c) for name, c in row.costs.items()},
        "differences": {key: _difference(d) for key, d in row.differences.items()},
        "gaps": {
            term: {"train": _cell(gap.train), "validation": _cell(gap.validation), "gap": _cell(gap.gap)}
            for term, gap in between.items()
        },
        "notes": list(row.notes),
    }


def _difference(d: Difference) -> dict[str, Any]:
    return {
        "mean": _finite(d.mean),
        "low": _finite(d.low),
        "high": _finite(d.high),
        "p": _finite(d.p),
        "p_holm": _finite(d.p_holm),
        "n": d.n,
        "pairing": d.how,
        "paired": d.how == PAIRED,
        "bootstrap": d.bootstrap,
        "mark": d.mark,
        "why": d.why,
    }


def _cell(c: Cell) -> dict[str, Any]:
    return {"mean": _finite(c.mean), "sd": _finite(c.sd), "n": c.n, "why": c.why}


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
