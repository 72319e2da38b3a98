"""The tables as text: terminal, Markdown, LaTeX.

Names and configs of runs are escaped for each format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from urepa.core.escaping import markdown as md
from urepa.core.escaping import printable, tex
from urepa.core.text_tables import Table, blocks
from urepa.reports.comparison.by_step import NEVER, Course
from urepa.reports.comparison.findings import MARKS, NAMED_AT_MOST, findings
from urepa.reports.comparison.first_sentence import cautions, verdict
from urepa.reports.comparison.number_format import delta, interval, mean_sd, minutes, minutes_mean_sd, p_value, percent
from urepa.reports.comparison.results import COSTS, ArmRow, Results, difference_metrics, missing_reason, reference_rows
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.smallest_difference import smallest_sentence
from urepa.reports.comparison.validation_gap import gap_texts, gaps

NOT_COMPARABLE, NOT_THERE = "≠", "–"
PACKAGES = r"% \usepackage{array,booktabs,graphicx,textcomp}"
AT_MOST_A_LINE = r"\ifdim\width>\textwidth \textwidth\else\width\fi"  # narrower tables keep their size
PAGE, WRAPPED = 120, 28  # widths in characters: of a table that is legible on a page, and of a column of 4 cm
LEGEND = (
    f"{NOT_COMPARABLE} not comparable with the baseline (where it has no value, with the first arm that has one); "
    f"{NOT_THERE} not measured"
)


def recorded_costs(results: Results) -> list[str]:
    """The costs that any run has recorded."""
    return [name for name in COSTS if any(row.costs[name].has_value for row in results.rows)]


def cell_text(cell: Cell) -> str:
    if cell.has_value:
        return mean_sd(cell)
    return NOT_COMPARABLE if cell.why.startswith("not comparable") else cell.why if "finite" in cell.why else NOT_THERE


def cost_text(name: str, cell: Cell) -> str:
    if not cell.has_value:
        return NOT_THERE
    return f"{cell.mean:.3g}" if name == "trainable, M" else mean_sd(cell)


def results_table(results: Results) -> Table:
    """One row per arm: its seeds, mean ± standard deviation of every metric, and its costs. The rows below are the
    reference values measured in the same way: the teacher, the untrained model, a model with random weights."""
    costs = recorded_costs(results)
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
    others = tuple(
        (
            label,
            str(max(cell.n for cell in cells.values())),
            *(cell_text(cells.get(metric.key, Cell())) for metric in results.metrics),
            *(NOT_THERE for _ in costs),
        )
        for label, cells in reference_rows(results).items()
    )
    return Table("mean ± standard deviation over seeds", headers, rows + others)


def differences_table(results: Results) -> Table:
    """One row per arm: the settings that it changes, and its difference to the baseline in every metric."""
    shown = difference_metrics(results)
    headers = ("arm", "changed", *(metric.title for metric in shown))
    rows = tuple(
        (
            row.arm.label + (" †" if row.notes else ""),
            "; ".join(map(str, row.arm.changes)),
            *(difference_text(results, row, metric.key) for metric in shown),
        )
        for row in results.rows[1:]
    )
    return Table("difference to the baseline [95 % interval], p after Holm", headers, rows)


def no_difference_text(results: Results, row: ArmRow, key: str) -> str:
    """The text that replaces a missing difference."""
    return missing_reason(results, row, key) or (NOT_THERE if row.cells[key].has_value else cell_text(row.cells[key]))


def difference_text(results: Results, row: ArmRow, key: str) -> str:
    """`−0.458 [−0.462, −0.454] p < 0.001 ●`."""
    if key not in row.differences:
        return no_difference_text(results, row, key)
    found = row.differences[key]
    if not isfinite(found.p):
        return f"{delta(found)} (n = {found.n})"
    return f"{delta(found)} {interval(found)} {p_value(found.p_holm)} {found.mark}"


def steps_to_baseline_table(results: Results) -> Table:
    """The table of the steps after which each arm is as good as the baseline of the same seed at its end. The
    baseline's row gives the step at which it first was."""
    races = results.races
    headers = ("arm", *(course.metric.title for course in races))
    rows = tuple(
        (row.arm.label, *(steps_to_baseline_text(course, row.arm.label) for course in races)) for row in results.rows
    )
    return Table(f"steps until it is as good as {results.study.baseline.label} in the end", headers, rows)


def steps_to_baseline_text(course: Course, label: str) -> str:
    """`1180 ± 90 (1.7×)`, with the ratio to the baseline's last step; `in 2 of 3 seeds` if not all seeds get there;
    `≤ 250` if every seed does at its first point."""
    cell, never = course.reached[label], course.never[label]
    if not cell.has_value:
        return NEVER if cell.why == NEVER else cell_text(cell)
    some = f" in {cell.n} of {cell.n + never} seeds" if never else ""
    if cell.mean <= course.steps[0]:
        return f"≤ {course.steps[0]}{some}"
    spread = f" ± {cell.sd:.0f}" if isfinite(cell.sd) else ""
    return f"{cell.mean:.0f}{spread} ({course.steps[-1] / cell.mean:.2g}×){some}"


def clock_table(results: Results) -> Table:
    """The same in minutes of training, with the total minutes of each arm and, if recorded, the time to build the
    teacher's cache."""
    cached, races = has_cache_times(results), results.races
    headers = ("arm", "all steps", *(["teacher's cache"] if cached else []), *(race.metric.title for race in races))
    rows = tuple(
        (
            row.arm.label,
            minutes_text(results.clock.whole[row.arm.label]),
            *([minutes_text(results.clock.caches[row.arm.label])] if cached else []),
            *(clock_text(results, course, row.arm.label) for course in races),
        )
        for row in results.rows
    )
    baseline = results.study.baseline.label
    return Table(
        f"minutes of training until it is as good as {baseline} in the end (share of its minutes)", headers, rows
    )


def has_cache_times(results: Results) -> bool:
    """Whether any arm read a teacher's cache whose build time is recorded."""
    return any(cell.has_value and cell.mean > 0 for cell in results.clock.caches.values())


def minutes_text(cell: Cell) -> str:
    return minutes_mean_sd(cell) if cell.has_value else NOT_THERE


def clock_text(results: Results, course: Course, label: str) -> str:
    """`7.1 ± 0.2 (72 %)`; with a recorded cache time followed by `; 8.3 (85 %) with the cache`."""
    clock, baseline = results.clock, results.study.baseline.label
    cell, whole, never = clock.reached[course.metric.key][label], clock.whole[baseline], course.never[label]
    if not cell.has_value:
        return NEVER if cell.why == NEVER else cell_text(cell)
    first = "≤ " if course.reached[label].mean <= course.steps[0] else ""
    some = f" in {cell.n} of {cell.n + never} seeds" if never else ""
    text = f"{first}{minutes_mean_sd(cell)}{percent(cell.mean / whole.mean) if whole.has_value else ''}{some}"
    here, there = clock.with_cache(label, cell), clock.with_cache(baseline, whole)
    if here is None or there is None or not clock.caches[label].mean:
        return text
    return f"{text}; {minutes(here)}{percent(here / there)} with the cache"


def course_tables(results: Results) -> list[Table]:
    """A table for each metric with values at several steps: one row per arm, one column per step."""
    return [
        Table(
            f"{course.metric.title} after so many steps",
            ("arm", *map(str, course.steps)),
            tuple((row.arm.label, *map(cell_text, course.cells[row.arm.label])) for row in results.rows),
        )
        for course in results.courses
    ]


def gaps_table(results: Results) -> Table:
    """One row per arm and term: training loss, validation loss, and the gap between them."""
    rows = tuple(
        (label, term, *gap_texts(gap)) for label, terms in gaps(results).items() for term, gap in terms.items()
    )
    return Table("train, validation and their gap", ("arm", "term", "train", "validation", "gap"), rows)


def legend() -> str:
    """The meaning of the marks."""
    return "; ".join([f"{mark} {meaning}" for mark, meaning in MARKS] + [LEGEND])


def footnotes(results: Results) -> list[str]:
    """Notes on empty cells and their reasons, and on arms that are not paired."""
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
    """A sentence on the number of seeds behind the intervals."""
    counts = sorted({d.n for row in results.rows for d in row.differences.values()})
    if not counts:
        return ""
    if counts[-1] < 2:
        return "One seed an arm: there is no interval, and no difference here can be told from noise."
    behind = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{behind} seeds stand behind a difference; differences with one seed have no interval."


# --- terminal -----------------------------------------------------------------------------------------------


def terminal(results: Results, width: int) -> str:
    """The comparison for the terminal, in lines of at most `width` characters where possible."""
    study = results.study
    lines = [verdict(results), *(f"CAUTION: {caution}" for caution in cautions(results)), ""]
    lines += [f"baseline: {study.baseline.label} ({study.why_baseline})", ""]
    table = results_table(results)
    lines += [table.title, *table.lines(width), ""]
    if len(results.rows) > 1:
        differences = differences_table(results)
        lines += [f"changed, against {study.baseline.label}"]
        lines += [f"  {row[0]}: {printable(row[1])}" for row in differences.rows] + [""]
        without = differences.part([0, *range(2, len(differences.headers))])  # its second column is "changed"
        lines += [
            without.title,
            *without.lines(width),
            *(f"  {note}" for note in (legend(), *footnotes(results))),
            "",
        ]
        lines += [f"- {finding}" for finding in findings(results)]
        lines += [" ".join(filter(None, [seeds_sentence(results), smallest_sentence(results)])), ""]
    if results.races:
        reached = steps_to_baseline_table(results)
        lines += [reached.title, *reached.lines(width), ""]
    if results.races and results.clock.is_known:
        by_clock = clock_table(results)
        lines += [by_clock.title, *by_clock.lines(width), ""]
    if study.apart:
        lines.append("set apart, excluded from all means:")
        lines += [f"  {apart.run.name}: {apart.reason}" for apart in study.apart]
    return "\n".join(printable(line) for line in lines)


# --- files --------------------------------------------------------------------------------------------------


def _all_tables(results: Results) -> list[Table]:
    races = [steps_to_baseline_table(results)] if results.races else []
    races += [clock_table(results)] if results.races and results.clock.is_known else []
    return [results_table(results), differences_table(results), gaps_table(results), *races, *course_tables(results)]


def markdown(results: Results, sentences: Sequence[str] = ()) -> str:
    """The verdict, its cautions, the tables, their notes and the findings."""
    parts = [md(verdict(results)), *(f"**Caution:** {md(caution)}" for caution in cautions(results))]
    parts += [*map(md, sentences), f"Baseline: {md(results.study.baseline.label)} ({md(results.study.why_baseline)})."]
    for table in _all_tables(results):
        if table.rows:
            parts.append(f"{table.title[0].upper()}{table.title[1:]}:\n\n{table.markdown()}")
    if len(results.rows) > 1:
        parts.append("\n".join(f"- {md(line)}" for line in [*findings(results), *footnotes(results)]))
        parts.append(legend())
        parts.append(" ".join(filter(None, [seeds_sentence(results), md(smallest_sentence(results))])))
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    r"""The tables for \input. Each is split by columns to be legible on a page, and
    rows without content in a split are left out."""
    tables = [_latex(table, tex(results.study.baseline.label)) for table in _all_tables(results) if table.rows]
    return "\n\n".join([PACKAGES, *tables]) + "\n"


def _latex(table: Table, baseline: str) -> str:
    widths = [min(w, WRAPPED) if h == "changed" else w for h, w in zip(table.headers, table.widths(), strict=True)]
    readable = [table.part(block) for block in blocks(widths, PAGE)]
    written = []
    for number, part in enumerate(readable, 1):
        columns = "l" + "".join(r">{\raggedright}p{4cm}" if h == "changed" else "r" for h in part.headers[1:])
        there = replace(part, rows=tuple(row for row in part.rows if any(text != NOT_THERE for text in row[1:])))
        which = f" ({number} of {len(readable)})" if len(readable) > 1 else ""
        written.append(
            f"\\begin{{table}}\n\\centering\n\\resizebox{{{AT_MOST_A_LINE}}}{{!}}{{%\n{there.tabular(columns)}}}\n"
            f"\\caption{{{tex(table.title)}{which}; baseline: {baseline}.}}\n\\end{{table}}"
        )
    return "\n\n".join(written)
