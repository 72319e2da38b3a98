"""A comparison for other programs."""

from __future__ import annotations

from math import isfinite
from typing import Any

from urepa.reports.comparison.findings import findings
from urepa.reports.comparison.first_sentence import cautions, verdict
from urepa.reports.comparison.results import PAIRED, Results
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.validation_gap import gaps


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for other programs. What is not a number is null."""

    def plain(value: float) -> float | None:
        return value if isfinite(value) else None

    def cell(c: Cell) -> dict[str, Any]:
        return {"mean": plain(c.mean), "sd": plain(c.sd), "n": c.n, "why": c.why}

    between = gaps(results)
    return {
        "verdict": verdict(results),
        "cautions": cautions(results),
        "baseline": results.study.baseline.label,
        "why_baseline": results.study.why_baseline,
        "arms": [
            {
                "label": row.arm.label,
                "experiment": row.arm.first.experiment,
                "ablation": row.arm.first.ablation,
                "runs": {str(seed): run.name for seed, run in row.arm.runs.items()},
                "changes": [{"key": c.key, "baseline": c.baseline, "here": c.here} for c in row.arm.changes],
                "cells": {key: cell(c) for key, c in row.cells.items()},
                "costs": {name: cell(c) for name, c in row.costs.items()},
                "differences": {
                    key: {
                        "mean": plain(d.mean),
                        "low": plain(d.low),
                        "high": plain(d.high),
                        "p": plain(d.p),
                        "p_holm": plain(d.p_holm),
                        "n": d.n,
                        "pairing": d.how,
                        "paired": d.how == PAIRED,
                        "bootstrap": d.bootstrap,
                        "mark": d.mark,
                        "why": d.why,
                    }
                    for key, d in row.differences.items()
                },
                "gaps": {
                    term: {"train": cell(gap.train), "validation": cell(gap.validation), "gap": cell(gap.gap)}
                    for term, gap in between.get(row.arm.label, {}).items()
                },
                "notes": list(row.notes),
            }
            for row in results.rows
        ],
        "courses": {
            course.metric.key: {
                "steps": course.steps,
                "cells": {label: [cell(c) for c in cells] for label, cells in course.cells.items()},
                "reached": {label: cell(c) | {"never": course.never[label]} for label, c in course.reached.items()},
            }
            for course in results.courses
        },
        "clock": {
            "minutes": {label: cell(c) for label, c in results.clock.whole.items()},
            "cache_minutes": {label: cell(c) for label, c in results.clock.caches.items()},
            "reached": {
                key: {label: cell(c) for label, c in by_label.items()}
                for key, by_label in results.clock.reached.items()
            },
        },
        "references": {key: cell(c) for key, c in results.references.items()},
        "findings": findings(results),
        "apart": [{"run": apart.run.name, "reason": apart.reason} for apart in results.study.apart],
    }
