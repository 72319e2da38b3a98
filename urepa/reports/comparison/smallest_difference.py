"""The smallest difference that a study with its number of seeds can detect, from the spread of its paired
differences."""

from __future__ import annotations

from math import isfinite, sqrt

from urepa.reports.comparison.number_format import number
from urepa.reports.comparison.results import PAIRED, Difference, Results
from urepa.reports.comparison.statistics import smallest_detectable, spread_of

POWER = 0.8  # the share of studies that detect such a difference


def smallest_differences(results: Results) -> tuple[int, dict[str, float]]:
    """The smallest true difference of each metric, by its key, that is detected with a power of 80 %. It is computed
    from the standard deviation of the paired differences over seeds, pooled over the arms (the root of the mean
    variance, weighted by n − 1). The first value is the smallest number of seeds of any such difference, 0 if none is
    paired. An arm whose differences are all equal is left out, because it does not show the spread."""
    by_metric: dict[str, list[Difference]] = {}
    for row in results.rows:
        for key, found in row.differences.items():
            if found.how == PAIRED and isfinite(found.high) and found.high > found.low:
                by_metric.setdefault(key, []).append(found)
    if not by_metric:
        return 0, {}
    seeds = min(d.n for found in by_metric.values() for d in found)
    effect = smallest_detectable(seeds, POWER)
    return seeds, {key: effect * _pooled_deviation(found) for key, found in by_metric.items()}


def _pooled_deviation(found: list[Difference]) -> float:
    variances = [(d.n - 1) * spread_of(d.high - d.low, d.n) ** 2 for d in found]
    return sqrt(sum(variances) / sum(d.n - 1 for d in found))


def smallest_sentence(results: Results) -> str:
    """`smallest_differences` as one sentence; "" if no difference has a paired interval."""
    seeds, smallest = smallest_differences(results)
    if not smallest:
        return ""
    listed = "; ".join(f"{m.label} {number(smallest[m.key])}" for m in results.metrics if m.key in smallest)
    return (
        f"The smallest true differences that the paired 95 % interval of {seeds} seeds detects in {100 * POWER:g} % of "
        "studies, before Holm, by the spread of these arms' differences "
        f"({smallest_detectable(seeds, POWER):.3g} standard deviations over seeds): {listed}."
    )
