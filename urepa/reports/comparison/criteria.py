"""Whether arms meet the criteria of success that metrics declare (`urepa.core.evaluation_protocols.Metric`)."""

from __future__ import annotations

from math import isfinite

from urepa.core.evaluation_protocols import BetterThan, BetterWith, Metric
from urepa.reports.comparison.number_format import MINUS, number
from urepa.reports.comparison.results import ArmRow, Results, last_cell

ON, OFF = "True", "False"


def criteria_remarks(results: Results) -> list[str]:
    """A sentence part for each criterion and each arm, or pair of arms, that can be judged by it."""
    remarks = []
    for metric in results.metrics:
        for criterion in metric.criteria:
            for row in results.rows:
                if isinstance(criterion, BetterWith):
                    verdict = _of_pair(results, row, metric, criterion)
                else:
                    verdict = _of_arm(row, metric, criterion)
                if verdict:
                    remarks.append(f"{criterion.words}: {verdict}")
    return remarks


def _of_pair(results: Results, row: ArmRow, metric: Metric, criterion: BetterWith) -> str:
    """The verdict on an arm that differs from the baseline in the setting alone; "" for other arms. By its 95 %
    interval where there is one. Its width is that of the difference; the value without the setting counts as known."""
    difference = row.differences.get(metric.key)
    if difference is None or [change.key for change in row.arm.changes] != [criterion.setting]:
        return ""
    baseline = results.rows[0]
    with_it, without = (row, baseline) if row.arm.config[criterion.setting] == ON else (baseline, row)
    if without.arm.config[criterion.setting] != OFF or without.cells[metric.key].mean == 0:
        return ""
    # a difference is arm less baseline; a gain is positive where the arm with the setting is better
    sign = (1 if with_it is row else -1) * (1 if metric.better == "↑" else -1)
    scale = sign / abs(without.cells[metric.key].mean)
    gain = scale * difference.mean
    low, high = sorted((scale * difference.low, scale * difference.high)) if isfinite(difference.p) else (gain, gain)
    verdict = {(True, True): "yes", (False, False): "no"}.get((low >= criterion.share, high >= criterion.share))
    told, lowest, highest = (_percent(share, criterion.share) for share in (gain, low, high))
    interval = f"[{lowest}, {highest}]" if isfinite(difference.p) else f"({difference.why})"
    return (
        f"{verdict or 'not decided'}, {metric.label} of {with_it.arm.label} is better than that of "
        f"{without.arm.label} by {told} {interval}"
    )


def _of_arm(row: ArmRow, metric: Metric, criterion: BetterThan) -> str:
    """The verdict on an arm by its means; "" if it lacks a value."""
    value = row.cells[metric.key]
    others = [(words, last_cell(row.arm, key)) for key, words in criterion.references]
    if metric.key != criterion.key or not value.has_value or not all(other.has_value for _, other in others):
        return ""
    sign = 1 if metric.better == "↑" else -1
    is_met = all(sign * (value.mean - other.mean) > 0 for _, other in others)
    told = ", ".join(f"{words} {number(other.mean)}" for words, other in others)
    return f"{'yes' if is_met else 'no'} in {row.arm.label}, {number(value.mean)} against {told}"


def _percent(share: float, limit: float) -> str:
    """`19.8 %`, with enough digits to show on which side of the limit it lies."""
    decimals = 1
    while decimals < 6 and (round(100 * share, decimals) >= 100 * limit) != (share >= limit):
        decimals += 1
    return f"{100 * share:.{decimals}f} %".replace("-", MINUS)
