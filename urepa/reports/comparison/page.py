"""The report: one self-contained HTML file. The template escapes all text that comes from runs and configs."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from urepa.reports.comparison.by_clock import unlike_machines
from urepa.reports.comparison.draw_panels import Drawn
from urepa.reports.comparison.evaluation_pictures import Pictures, on_page
from urepa.reports.comparison.expected_values import documents_arm, of_steps, reported_rows
from urepa.reports.comparison.figures import CAPTIONS
from urepa.reports.comparison.findings import findings, other_remarks, overfitting_sentences
from urepa.reports.comparison.first_sentence import cautions, verdict
from urepa.reports.comparison.look_strips import Strips
from urepa.reports.comparison.metric_columns import reference_label
from urepa.reports.comparison.number_format import delta, interval, mean_sd, p_value
from urepa.reports.comparison.page_title import subtitle, title
from urepa.reports.comparison.predictors import Predictor, explanation, predictors_table
from urepa.reports.comparison.ranking import ORDER, ranking
from urepa.reports.comparison.results import ArmRow, Results, difference_metrics, other_references, reference_rows
from urepa.reports.comparison.sample_grids import Grid, Grids
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.smallest_difference import smallest_sentence
from urepa.reports.comparison.tables import (
    LEGEND,
    cell_text,
    clock_text,
    cost_text,
    course_tables,
    footnotes,
    has_cache_times,
    legend,
    minutes_text,
    no_difference_text,
    recorded_costs,
    seeds_sentence,
    steps_to_baseline_text,
)
from urepa.reports.comparison.validation_gap import EXPLANATION, Gap, gap_texts, gaps

TEMPLATE = Path(__file__).with_name("report.html")
SECTIONS = {
    "findings": "Findings",
    "results": "Results",
    "differences": "Differences",
    "ranking": "Ranking",
    "predictors": "Early values and the gain",
    "gaps": "Train and validation",
    "samples": "Samples",
    "pictures": "Pictures of evaluations",
    "look": "Over the steps",
    "timesteps": "By timestep",
    "sweeps": "Sweeps",
    "way": "Steps to the baseline",
    "clock": "By the clock",
    "curves": "Training curves",
    "gradients": "Gradients",
    "reported": "Reported and measured",
    "remarks": "Remarks",
    "apart": "Set apart",
    "method": "Method",
}
WHOLE = 15  # characters of a word that fit into a column header
BREAKS = re.compile(r"([(_=/]|\.(?!\d))")
KINDS = {"●": "found", "◐": "", "○": "noise", "": ""}


def _breakable(name: str) -> Any:
    """A name, escaped, with possible line breaks after separators in long words, so that they do not overlap the next
    column. Short words stay whole, because a wide table makes a column as narrow as its parts."""
    from markupsafe import Markup, escape

    words = ((word, str(escape(word))) for word in name.split(" "))
    return Markup(" ".join(safe if len(word) <= WHOLE else BREAKS.sub(r"\1<wbr>", safe) for word, safe in words))


def page(
    results: Results,
    drawn: list[Drawn],
    sentences: list[str],
    grids: Grids | None = None,
    strips: Strips | None = None,
    pictures: Sequence[Pictures] = (),
    correlations: Sequence[Predictor] = (),
) -> str:
    """The report as HTML."""
    from jinja2 import Environment, StrictUndefined

    study, figures = results.study, _figures(drawn)
    several = len(study.arms) > 1
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["breakable"] = _breakable
    return environment.from_string(TEMPLATE.read_text()).render(
        title=title(results),
        subtitle=subtitle(results),
        sections=_sections(
            results, figures, {"samples": grids, "pictures": pictures, "look": strips, "predictors": correlations}
        ),
        verdict=verdict(results),
        cautions=cautions(results),
        sentences=sentences,
        findings=findings(results) if several else [],
        legend=LEGEND[0].upper() + LEGEND[1:],
        baseline=study.baseline.label,
        seeds=seeds_sentence(results),
        smallest=smallest_sentence(results),
        **_results(results),
        references=[
            (reference_label(key), mean_sd(cell)) for key, cell in other_references(results).items() if cell.has_value
        ],
        **_differences(results),
        ranking=ranking(results),
        ranking_order=ORDER,
        predictors=predictors_table(correlations) if correlations else None,
        predictors_explained=explanation(results, correlations),
        marks=legend(),
        footnotes=footnotes(results),
        **_by_timestep(results),
        **_by_step(results),
        **_by_clock(results),
        figures=figures,
        captions=CAPTIONS,
        **_gaps(results),
        grids=_grids(grids),
        pictures=[on_page(one) for one in pictures],
        strips=None if strips is None else {"seed": strips.seed, "bucket": strips.bucket, "note": strips.note},
        strips_shown=[] if strips is None else _shown(strips.shown),
        **_expected_values(results),
        remarks=[f"Overfitting: {line}." for line in overfitting_sentences(results)]
        + [f"{line[0].upper()}{line[1:]}." for line in other_remarks(results)]
        or ["Nothing stands out."],
        apart=study.apart,
        runs=[{"label": row.arm.label, "runs": [run.name for run in row.arm.runs.values()]} for row in results.rows],
    )


def _figures(drawn: list[Drawn]) -> dict[str, list[dict[str, Any]]]:
    """The figures of each section, in the form that the template expects."""
    from markupsafe import Markup

    figures: dict[str, list[dict[str, Any]]] = {section: [] for section in CAPTIONS}
    for d in drawn:
        figures[d.panel.section].append(
            {
                "name": d.panel.name,
                "title": d.panel.title,
                "svg": Markup(d.svg),
                "note": d.panel.note,
                "wide": d.panel.grid != (1, 1),
            }
        )
    return figures


def _sections(
    results: Results, figures: dict[str, list[dict[str, Any]]], others: dict[str, Any]
) -> list[tuple[str, str]]:
    """Names and ids of the sections that have content. `others`: the content, by id, of sections that are not made
    here."""
    several = len(results.study.arms) > 1
    there = {
        "findings": several,
        "differences": several,
        "ranking": ranking(results),
        "gaps": gaps(results),
        "reported": documents_arm(results),
        "timesteps": results.bins or figures["timesteps"],
        "way": results.courses,
        "clock": results.courses,
        "apart": results.study.apart,
    }
    there |= others | {name: figures[name] for name in ("sweeps", "curves", "gradients")}
    return [(name, id_) for id_, name in SECTIONS.items() if there.get(id_, True)]


def _results(results: Results) -> dict[str, Any]:
    """The table of results, and the reference rows below it."""
    costs = recorded_costs(results)
    return {
        "results_head": ["arm", "n", *(m.title for m in results.metrics), *costs],
        "results_rows": [
            {
                "label": row.arm.label,
                "cells": [
                    {"value": len(row.arm.runs), "text": len(row.arm.runs), "small": [], "kind": "", "why": ""},
                    *(_cell(row.cells[m.key], cell_text(row.cells[m.key])) for m in results.metrics),
                    *(_cell(row.costs[name], cost_text(name, row.costs[name])) for name in costs),
                ],
            }
            for row in results.rows
        ]
        + [_beside(results, label, cells, len(costs)) for label, cells in reference_rows(results).items()],
    }


def _differences(results: Results) -> dict[str, Any]:
    """The table of differences to the baseline."""
    shown = difference_metrics(results)
    return {
        "differences_head": ["arm", "changed", *(m.title for m in shown)],
        "differences_rows": [
            {
                "label": row.arm.label + (" †" if row.notes else ""),
                "changes": row.arm.changes,
                "cells": [_difference(results, row, m.key) for m in shown],
            }
            for row in results.rows[1:]
        ],
    }


def _by_timestep(results: Results) -> dict[str, Any]:
    """The table of the error of the implied x0 by timestep."""
    return {
        "bins_head": ["arm", *(key.rpartition("/")[2] for key in results.bins)] if results.bins else [],
        "bins_rows": [
            {"label": row.arm.label, "cells": [_cell(row.cells[k], cell_text(row.cells[k])) for k in results.bins]}
            for row in results.rows
        ],
    }


def _by_step(results: Results) -> dict[str, Any]:
    """Steps until the baseline's final value, and every metric by step."""
    return {
        "reached_head": ["arm", *(course.metric.title for course in results.races)] if results.races else [],
        "reached_rows": [
            {
                "label": row.arm.label,
                "cells": [
                    _cell(c.reached[row.arm.label], steps_to_baseline_text(c, row.arm.label)) for c in results.races
                ],
            }
            for row in results.rows
        ],
        "way": course_tables(results),
    }


def _by_clock(results: Results) -> dict[str, Any]:
    """Minutes until the baseline's final value, why an arm has none, and a note if the runs' machines differ."""
    clock, races, cached = results.clock, results.races, has_cache_times(results)
    shown = races and clock.is_known
    head = ["arm", "all steps", *(["teacher's cache"] if cached else []), *(course.metric.title for course in races)]
    rows = []
    for label in (row.arm.label for row in results.rows):
        cells = [_cell(clock.whole[label], minutes_text(clock.whole[label]))]
        if cached:
            cells.append(_cell(clock.caches[label], minutes_text(clock.caches[label])))
        cells += [_minutes(clock.reached[c.metric.key][label], clock_text(results, c, label)) for c in races]
        rows.append({"label": label, "cells": cells})
    unlike = [
        f"{found[0].upper()}{found[1:]}: their minutes cannot be compared." for found in unlike_machines(results.study)
    ]
    return {
        "clock_head": head if shown else [],
        "clock_rows": rows,
        "clock_notes": [f"No minutes of {label}: {why}." for label, why in clock.missing.items()] + unlike,
    }


def _minutes(cell: Cell, text: str) -> dict[str, Any]:
    """A cell; the time including the teacher's cache is on a line of its own."""
    first, _, with_cache = text.partition("; ")
    shown = _cell(cell, first)
    return shown | {"small": [*shown["small"], *([with_cache] if with_cache else [])]}


def _gaps(results: Results) -> dict[str, Any]:
    """The table of training, validation and the gap between them."""
    found = gaps(results)
    terms = list(next(iter(found.values()), {}))
    return {
        "gaps_terms": terms,
        "gaps_head": ["arm", *("train", "validation", "gap") * len(terms)],
        "gaps_rows": [
            {"label": label, "cells": [cell for gap in by_term.values() for cell in _gap(gap)]}
            for label, by_term in found.items()
        ],
        "gaps_explained": EXPLANATION,
    }


def _gap(gap: Gap) -> list[dict[str, Any]]:
    """The three cells of a gap; its share of the training loss is on a second line."""
    cells = []
    for cell, text in zip((gap.train, gap.validation, gap.gap), gap_texts(gap), strict=True):
        value, _, share = text.partition(" (")
        cells.append(_cell(cell, value))
        if share:
            cells[-1]["small"].append(share.removesuffix(")"))
    return cells


def _grids(grids: Grids | None) -> dict[str, Any] | None:
    """The grids of samples as data URIs."""
    if grids is None:
        return None
    shown = _shown(grids.shown)
    return {"seed": grids.seed, "step": grids.step, "bucket": grids.bucket, "shown": shown, "note": grids.note}


def _shown(grids: tuple[Grid, ...]) -> list[dict[str, str]]:
    """The arms' pictures as data URIs."""
    return [
        {"label": grid.label, "run": grid.run, "uri": f"data:image/png;base64,{b64encode(grid.png).decode()}"}
        for grid in grids
    ]


def _expected_values(results: Results) -> dict[str, Any]:
    """The description's expected values, if an arm is the description's experiment."""
    arm = documents_arm(results)
    if arm is None:
        return {"reported": []}
    return {"reported": reported_rows(arm), "reported_arm": arm.label, "reported_steps": of_steps(arm)}


def _cell(cell: Cell, text: str) -> dict[str, Any]:
    """The mean, with its deviation on a second line."""
    mean, _, sd = text.partition(" ± ")
    small, kind = [f"± {sd}"] if sd else [], "" if cell.has_value else "none"
    return {"value": cell.mean if cell.has_value else "", "text": mean, "small": small, "kind": kind, "why": cell.why}


def _beside(results: Results, label: str, cells: dict[str, Cell], costs: int) -> dict[str, Any]:
    """A reference row below the arms."""
    there = [cells.get(metric.key, Cell()) for metric in results.metrics] + [Cell()] * costs
    n = max(cell.n for cell in cells.values())
    first = {"value": n, "text": n, "small": [], "kind": "", "why": ""}
    return {"label": label, "cells": [first, *(_cell(cell, cell_text(cell)) for cell in there)]}


def _difference(results: Results, row: ArmRow, key: str) -> dict[str, Any]:
    found, cell = row.differences.get(key), row.cells[key]
    if found is None:
        return {
            "value": "",
            "text": no_difference_text(results, row, key),
            "small": [],
            "kind": "none",
            "why": cell.why,
        }
    small = [f"n = {found.n}", found.why] if not isfinite(found.p) else [interval(found), p_value(found.p_holm)]
    if found.bootstrap is not None:
        low, high = found.bootstrap
        small.append(f"bootstrap {interval(replace(found, low=low, high=high))}")
    text = f"{delta(found)} {found.mark}".strip()
    return {"value": found.mean, "text": text, "small": small, "kind": KINDS[found.mark], "why": ""}
