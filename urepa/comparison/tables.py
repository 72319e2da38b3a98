"""The tables as text: terminal, CSV, Markdown, LaTeX, and everything as JSON.

What comes from run names and configs is escaped for each of them.
"""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from urepa.comparison.results import COSTS, PAIRED, Cell, Results, Row
from urepa.comparison.words import MARKS, NAMED_AT_MOST, delta, findings, interval, mean_sd, p_value

NOT_COMPARABLE, NOT_THERE = "≠", "–"
LEGEND = f"{NOT_COMPARABLE} not comparable with the baseline; {NOT_THERE} not measured"


@dataclass(frozen=True)
class Table:
    """Headers and rows of plain text."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def costs_shown(results: Results) -> list[str]:
    """The costs that some run has recorded."""
    return [name for name in COSTS if any(row.costs[name].filled for row in results.rows)]


def cell_text(cell: Cell) -> str:
    if cell.filled:
        return mean_sd(cell)
    return NOT_COMPARABLE if cell.why.startswith("not comparable") else cell.why if "finite" in cell.why else NOT_THERE


def cost_text(name: str, cell: Cell) -> str:
    if not cell.filled:
        return NOT_THERE
    return f"{cell.mean:.3g}" if name == "trainable, M" else mean_sd(cell)


def results_table(results: Results) -> Table:
    """An arm a row: its seeds, mean ± standard deviation of every metric, and what it cost."""
    costs = costs_shown(results)
    headers = ("arm", "n", *(metric.title for metric in results.metrics), *costs)
    rows = tuple(
        (
            row.arm.label,
            str(len(row.arm.runs)),
            *(cell_text(row.cells[metric.key]) for metric in results.metrics),
            *(cost_text(name, row.costs[name]) for name in costs),
        )
        for row in results.rows
    )
    return Table("mean ± standard deviation over seeds", headers, rows)


def differences_table(results: Results) -> Table:
    """An arm a row: what it changed, and its difference to the baseline in every metric."""
    shown = [m for m in results.metrics if any(m.key in row.differences for row in results.rows)]
    headers = ("arm", "changed", *(metric.title for metric in shown))
    rows = tuple(
        (
            row.arm.label + (" †" if row.notes else ""),
            "; ".join(map(str, row.arm.changes)),
            *(difference_text(row, metric.key) for metric in shown),
        )
        for row in results.rows[1:]
    )
    return Table("difference to the baseline [95 % interval], p after Holm", headers, rows)


def difference_text(row: Row, key: str) -> str:
    """`−0.458 [−0.462, −0.454] p < 0.001 ●`."""
    if key not in row.differences:
        return cell_text(row.cells[key]) if not row.cells[key].filled else NOT_THERE
    found = row.differences[key]
    if not isfinite(found.p):
        return f"{delta(found)} (n = {found.n})"
    return f"{delta(found)} {interval(found)} {p_value(found.p_holm)} {found.mark}"


def legend() -> str:
    """What the marks mean."""
    return "; ".join([f"{mark} {meaning}" for mark, meaning in MARKS] + [LEGEND])


def footnotes(results: Results) -> list[str]:
    """Where cells are empty and why, and which arms are not paired."""
    empty: dict[tuple[str, str], list[str]] = {}
    for metric in results.metrics:
        why: dict[str, list[str]] = {}
        for row in results.rows:
            if row.cells[metric.key].why.startswith("not comparable"):
                reason = row.cells[metric.key].why.removeprefix("not comparable: ")
                why.setdefault(reason, []).append(row.arm.label)
        for reason, arms in why.items():
            who = "; ".join(arms) if len(arms) <= NAMED_AT_MOST else f"{len(arms)} arms"
            empty.setdefault((who, reason), []).append(metric.label)
    notes = [f"{NOT_COMPARABLE} {who}: {reason} ({', '.join(labels)})" for (who, reason), labels in empty.items()]
    return notes + [f"† {row.arm.label}: {note}" for row in results.rows for note in row.notes]


def seeds_sentence(results: Results) -> str:
    """How many seeds stand behind the intervals."""
    counts = sorted({d.n for row in results.rows for d in row.differences.values()})
    if not counts:
        return ""
    if counts[-1] < 2:
        return "One seed an arm: there is no interval, and no difference here can be told from noise."
    behind = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{behind} seeds stand behind a difference; differences with one seed have no interval."


# --- terminal -----------------------------------------------------------------------------------------------


def terminal(results: Results, width: int) -> str:
    """Everything a reader of the terminal needs, in lines of at most `width` where that can be."""
    study = results.study
    lines = [f"baseline: {study.baseline.label} ({study.why_baseline})", ""]
    table = results_table(results)
    lines += [table.title, *_lines(table, width), ""]
    if len(results.rows) > 1:
        differences = differences_table(results)
        lines += [f"changed, against {study.baseline.label}"]
        lines += [f"  {row[0]}: {_plain(row[1])}" for row in differences.rows] + [""]
        without = Table(
            differences.title,
            (differences.headers[0], *differences.headers[2:]),
            tuple((row[0], *row[2:]) for row in differences.rows),
        )
        lines += [
            without.title,
            *_lines(without, width),
            *(f"  {note}" for note in (legend(), *footnotes(results))),
            "",
        ]
        lines += [f"- {finding}" for finding in findings(results)]
        lines += [seeds_sentence(results), ""]
    if study.apart:
        lines.append("set apart, averaged into nothing:")
        lines += [f"  {apart.run.name}: {apart.reason}" for apart in study.apart]
    return "\n".join(_plain(line) for line in lines)


def _lines(table: Table, width: int) -> list[str]:
    """The table in as many blocks as its columns need, the first column in each."""
    widths = [max(len(str(row[i])) for row in (table.headers, *table.rows)) for i in range(len(table.headers))]
    blocks: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if blocks[-1] and 2 + widths[0] + sum(2 + widths[j] for j in (*blocks[-1], i)) > width:
            blocks.append([])
        blocks[-1].append(i)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        for row in (table.headers, *table.rows):
            lines.append(f"  {row[0]:<{widths[0]}}" + "".join(f"  {row[i]:>{widths[i]}}" for i in block))
    return lines


def _plain(text: str) -> str:
    """Without control characters: a name cannot drive the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


# --- files --------------------------------------------------------------------------------------------------


def csv_text(results: Results) -> str:
    """A row an arm, full precision. A text that a spreadsheet would take for a formula gets an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [metric.key for metric in results.metrics]
    costs = costs_shown(results)
    statistics = ("difference", "low", "high", "p", "p_holm", "bootstrap_low", "bootstrap_high", "pairing")
    headers = ["arm", "experiment", "ablation", "changed", "seeds"]
    headers += [f"{key}{ending}" for key in keys for ending in ("", " sd", " n", *(f" {name}" for name in statistics))]
    headers += [*results.bins, *costs, "notes"]
    writer.writerow(headers)
    for row in results.rows:
        run = row.arm.first
        changed = "; ".join(map(str, row.arm.changes))
        line: list[Any] = [row.arm.label, run.experiment, run.ablation, changed, " ".join(map(str, row.arm.runs))]
        for key in keys:
            line += [*_numbers(row.cells[key]), row.cells[key].n if row.cells[key].filled else ""]
            found = row.differences.get(key)
            if found is None:
                line += [""] * len(statistics)
            else:
                low, high = found.bootstrap or ("", "")
                values = [found.mean, found.low, found.high, found.p, found.p_holm]
                line += [*(v if isfinite(v) else "" for v in values), low, high, found.how]
        line += [_numbers(row.cells[key])[0] for key in results.bins]
        line += [_numbers(row.costs[name])[0] for name in costs] + ["; ".join(row.notes)]
        writer.writerow([f"'{v}" if isinstance(v, str) and v[:1] in tuple("=+-@\t\r") else v for v in line])
    return text.getvalue()


def _numbers(cell: Cell) -> tuple[Any, Any]:
    return (cell.mean if cell.filled else "", cell.sd if cell.filled and isfinite(cell.sd) else "")


def markdown(results: Results) -> str:
    """Both tables, their notes and the findings."""
    parts = [f"Baseline: {_md(results.study.baseline.label)} ({results.study.why_baseline})."]
    for table in (results_table(results), differences_table(results)):
        if table.rows:
            head = f"| {' | '.join(map(_md, table.headers))} |\n|{'---|' * len(table.headers)}"
            body = "\n".join(f"| {' | '.join(map(_md, row))} |" for row in table.rows)
            parts.append(f"{table.title[0].upper()}{table.title[1:]}:\n\n{head}\n{body}")
    if len(results.rows) > 1:
        parts.append("\n".join(f"- {_md(line)}" for line in [*findings(results), *footnotes(results)]))
        parts.append(legend())
        parts.append(seeds_sentence(results))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    """No HTML, no table bars, no emphasis."""
    one_line = html.escape(_plain(" ".join(text.split())), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", one_line)


TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "−": "$-$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "λ": r"$\lambda$",
    "β": r"$\beta$",
    "●": r"$\bullet$",
    "◐": r"$\odot$",
    "○": r"$\circ$",
    "≠": r"$\neq$",
    "†": r"$\dagger$",
    "–": "--",
    "—": "---",
    "§": r"\S{}",
}


def tex(text: str) -> str:
    """For LaTeX with any engine: what plain ASCII cannot say and has no name here is written as its code."""
    return "".join(TEX.get(c, c if " " <= c < "\x7f" else f"[U+{ord(c):04X}]") for c in _plain(" ".join(text.split())))


def latex(results: Results) -> str:
    r"""Two tables for \input, with booktabs and textcomp."""
    parts = [r"% \usepackage{booktabs,textcomp,graphicx}"]
    for table in (results_table(results), differences_table(results)):
        if not table.rows:
            continue
        columns = (
            "l"
            + ("p{4cm}" if "changed" in table.headers else "")
            + "r" * (len(table.headers) - 1 - ("changed" in table.headers))
        )
        lines = [" & ".join(map(tex, row)) + r" \\" for row in (table.headers, *table.rows)]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        parts.append(
            "\\begin{table}\n\\centering\n\\resizebox{\\textwidth}{!}{%\n"
            f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}}}\n"
            f"\\caption{{{tex(table.title)}; baseline: {tex(results.study.baseline.label)}.}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for other programs. What is not a number is null."""

    def plain(value: float) -> float | None:
        return value if isfinite(value) else None

    def cell(c: Cell) -> dict[str, Any]:
        return {"mean": plain(c.mean), "sd": plain(c.sd), "n": c.n, "why": c.why}

    return {
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
                "notes": list(row.notes),
            }
            for row in results.rows
        ],
        "references": {key: cell(c) for key, c in results.references.items()},
        "findings": findings(results),
        "apart": [{"run": apart.run.name, "reason": apart.reason} for apart in results.study.apart],
    }
