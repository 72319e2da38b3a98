"""The verdict: one sentence on the differences from the baseline beyond noise, and the cautions that must follow it.
Beyond noise means ●: the 95 % interval excludes 0 after Holm over the arms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isfinite

from urepa.core.evaluation_protocols import Metric
from urepa.reports.comparison.comparable import differing_keys
from urepa.reports.comparison.results import PAIRED, ArmRow, Difference, Results, fewest_seeds
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.statistics import detection_power, factor_of_two_seeds

NAMED_AT_MOST = 3  # arms, metrics and clauses
HARDLY = "can hardly tell an effect from chance"  # said of two seeds
TYPICAL = 2.0  # an effect in standard deviations over seeds; the caution says how often it is found
Effect = tuple[Metric, bool]  # a metric, and whether it is raised


def verdict(results: Results) -> str:
    """One sentence with its full stop. It leaves out differences by construction: metrics whose weight in training the
    arm changes (`Metric.trained_by`)."""
    runs = sum(len(row.arm.runs) for row in results.rows)
    if runs == 1:
        return "There is one run only, so nothing is compared: its values are shown as they are."
    if len(results.rows) == 1:
        return f"There is one arm only, of {runs} seeds: its values are shown, nothing is compared."
    tested = {row.arm.label: _counted_differences(results, row) for row in results.rows[1:]}
    if not any(tested.values()):
        return _untested_sentence(results)
    effects = _effects(results)
    arms = [label for label, found in tested.items() if found]
    said, rest = _clauses(effects, len(arms))
    metrics = {key for found in tested.values() for key in found}
    if not effects:
        said = [_no_effect_clause(arms, len(metrics))]
    elif rest:
        said.append(rest)
    elif sum(map(len, tested.values())) > sum(map(len, effects.values())):
        said.append("nothing else differs beyond noise")
    if left_out := [label for label, found in tested.items() if not found]:
        said.append(f"{_arm_names(left_out)} could not be tested")
    said += _by_construction(results)
    return _with_seeds(said, [d for found in tested.values() for d in found.values()], claims=bool(effects))


def _with_seeds(said: list[str], differences: list[Difference], claims: bool) -> str:
    """Joins the clauses to one sentence with the number of seeds. With two seeds the sentence says "suggest"."""
    seeds, fewest = _seeds(differences), min(d.n for d in differences)
    if fewest > 2:
        return f"{_capitalise('; '.join([*said, seeds]))}."
    if claims and all(d.n == 2 for d in differences):
        return f"{seeds.replace('2', 'Two', 1)}, which {HARDLY}, suggest that {'; '.join(said)}."
    which = "which" if all(d.n == 2 for d in differences) else "of which two"
    return f"{_capitalise('; '.join([*said, f'{seeds}, {which} {HARDLY}']))}."


def _by_construction(results: Results) -> list[str]:
    """A clause on the tested metrics that are left out, with their arms; empty if there are none."""
    left_out = [
        (metric, row.arm.label)
        for metric in results.metrics
        for row in results.rows[1:]
        if metric.key in _tested_differences(row) and _is_by_construction(results, row, metric)
    ]
    if not left_out:
        return []
    names, arms = (list(dict.fromkeys(found)) for found in zip(*left_out, strict=True))
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    train = "trains" if len(arms) == 1 else "train"
    return [
        f"{_first_names(map(_metric_name, names))} {are} not counted for {_arm_names(arms)}, which {train} with "
        f"another weight on {them}"
    ]


def _is_by_construction(results: Results, row: ArmRow, metric: Metric) -> bool:
    """Whether the arm and the baseline differ in the weight with which the metric's quantity is trained."""
    return bool(differing_keys(row.arm.config, results.study.baseline.config, metric.trained_by))


def _counted_differences(results: Results, row: ArmRow) -> dict[str, Difference]:
    """The differences that have an interval and are not there by construction, by metric."""
    by_construction = {metric.key for metric in results.metrics if _is_by_construction(results, row, metric)}
    return {key: d for key, d in _tested_differences(row).items() if key not in by_construction}


def _tested_differences(row: ArmRow) -> dict[str, Difference]:
    """The differences that have an interval, by metric."""
    return {key: d for key, d in row.differences.items() if isfinite(d.p)}


def _untested_sentence(results: Results) -> str:
    differences = [d for row in results.rows for d in row.differences.values()]
    if not differences:
        return "Nothing is compared: the baseline and the other arms have no metric that is one and the same quantity."
    if any(_tested_differences(row) for row in results.rows):
        return f"No difference is tested: {_by_construction(results)[0]}."
    if max(d.n for d in differences) < 2:
        seeds = "One seed an arm" if fewest_seeds(results) == 1 else "One shared seed"
        return f"{seeds}: no difference can be told from noise, so none is claimed."
    return "No difference has an interval, as each is the same in every seed: none can be tested."


def _no_effect_clause(arms: list[str], metrics: int) -> str:
    who = f"{label_text(arms[0])} does not differ" if len(arms) == 1 else f"none of {len(arms)} arms differs"
    where = "the one metric that is compared" if metrics == 1 else f"any of {metrics} metrics"
    return f"{who} from the baseline beyond noise in {where}"


def _effects(results: Results) -> dict[Effect, tuple[str, ...]]:
    """The arms of each effect beyond noise, in the order of the metrics."""
    effects: dict[Effect, tuple[str, ...]] = {}
    for metric in results.metrics:
        for raised in (False, True):
            arms = tuple(
                row.arm.label
                for row in results.rows[1:]
                if (d := row.differences.get(metric.key))
                and d.mark == "●"
                and (d.mean > 0) == raised
                and not _is_by_construction(results, row, metric)
            )
            if arms:
                effects[metric, raised] = arms
    return effects


def _clauses(effects: dict[Effect, tuple[str, ...]], tested: int) -> tuple[list[str], str]:
    """A clause for each set of arms with common effects, the largest sets first, and one on the remaining effects if
    there are more than `NAMED_AT_MOST`. `tested`: the number of tested arms."""
    ordered = _group_by_arms(effects)
    clauses = [
        f"{_arm_names(arms, tested)} {_effects_text(found, several=len(arms) > 1)}"
        for arms, found in ordered[:NAMED_AT_MOST]
    ]
    left = [_judgement(effect) for arms, found in ordered[NAMED_AT_MOST:] for effect in found for _ in arms]
    if not left:
        return clauses, ""
    are = "difference is" if len(left) == 1 else "differences are"
    return clauses, f"{len(left)} other {are} beyond noise, {left.count('worse')} for the worse"


def _group_by_arms(effects: dict[Effect, tuple[str, ...]]) -> list[tuple[tuple[str, ...], list[Effect]]]:
    """Groups effects by the arms that have them, largest sets of arms first."""
    by_arms: dict[tuple[str, ...], list[Effect]] = {}
    for effect, arms in effects.items():
        by_arms.setdefault(arms, []).append(effect)
    return sorted(by_arms.items(), key=lambda item: -len(item[0]))


def labels_in_order(results: Results) -> list[str]:
    """The labels of all arms but the baseline: first the arms with an effect, in the order of the verdict, then the
    others."""
    named = [label for arms, _ in _group_by_arms(_effects(results)) for label in arms]
    return list(dict.fromkeys([*named, *(row.arm.label for row in results.rows[1:])]))


def _judgement(effect: Effect) -> str:
    metric, raised = effect
    return "" if not metric.better else "better" if raised == (metric.better == "↑") else "worse"


def _effects_text(effects: list[Effect], several: bool) -> str:
    """The clause on effects, such as `lowers the token loss, which is better, but raises FD(pixels), which is
    worse`."""
    parts: dict[str, list[str]] = {}
    for judged in ("better", "", "worse"):
        for raised in (False, True):
            metrics = [metric for metric, up in effects if up == raised and _judgement((metric, up)) == judged]
            if metrics:
                verb = ("raise" if raised else "lower") + ("" if several else "s")
                which = f", which is {judged}" if judged else ", which is neither better nor worse"
                parts.setdefault(judged, []).append(f"{verb} {_first_names(_metric_name(m) for m in metrics)}{which}")
    joined = [", and ".join(found) for found in parts.values()]
    return ", but ".join(joined) if {"better", "worse"} <= parts.keys() else ", and ".join(joined)


def _metric_name(metric: Metric) -> str:
    """The metric's label with an article if it is a common noun: `the token loss`, `FD(pixels)`, `k-NN: tap`."""
    return metric.label if re.search(r"[(:/]", metric.label) else f"the {metric.label}"


def _first_names(names: Iterable[str]) -> str:
    """At most three names, and how many more there are."""
    every = list(names)
    more = [f"{len(every) - NAMED_AT_MOST} more"] if len(every) > NAMED_AT_MOST else []
    return _join_names([*every[:NAMED_AT_MOST], *more])


def _arm_names(labels: Iterable[str], of: int = 0) -> str:
    """At most three arms by name; for more arms their number, out of `of`."""
    every = list(labels)
    if len(every) > NAMED_AT_MOST:
        return f"{len(every)} of {of} arms" if of > len(every) else f"{'all ' if of else ''}{len(every)} arms"
    return _join_names([label_text(label) for label in every])


def label_text(label: str) -> str:
    """An arm's label for use in a sentence: λ for `lambda_max`; in quotation marks if the label is a list."""
    words = re.sub(r"\blambda_max=", "λ=", label)
    return f"“{words}”" if "," in words or ";" in words else words


def _join_names(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _seeds(differences: list[Difference]) -> str:
    """The number of seeds behind the tested differences, in words."""
    counts = sorted({d.n for d in differences})
    text = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    paired = {d.how == PAIRED for d in differences}
    return text + {frozenset({False}): ", not paired", frozenset({True, False}): ", not all paired"}.get(
        frozenset(paired), ""
    )


def _capitalise(text: str) -> str:
    """Capitalises the sentence unless it begins with an arm's name."""
    return text[0].upper() + text[1:] if text.startswith(("none of ", "all ")) else text


# --- cautions after the verdict -----------------------------------------------------------------------------


def cautions(results: Results) -> list[str]:
    """Sentences on what weakens the verdict: two seeds, arms that are identical to the baseline, diverged arms."""
    return [*_two_seeds_caution(results), *_identical_arms_caution(results), *_diverged_arms_caution(results)]


def _two_seeds_caution(results: Results) -> list[str]:
    """A caution on intervals from two seeds per arm, as `statistics.paired_interval` and `statistics.welch_interval`
    compute them."""
    two = [d for row in results.rows for d in _tested_differences(row).values() if d.n == 2]
    if not two:
        return []
    arms = [row.arm.label for row in results.rows if any(d.n == 2 for d in _tested_differences(row).values())]
    who = (
        "" if len(arms) == len([row for row in results.rows if _tested_differences(row)]) else f" ({_arm_names(arms)})"
    )
    said = [f"Two seeds{who} {HARDLY}."]
    if any(d.how == PAIRED for d in two):
        factor = factor_of_two_seeds()
        said.append(
            "With two pairs Student's t has one degree of freedom: the 95 % interval is the mean difference "
            f"± {factor:.2f} times the distance between the two seeds' differences. So it excludes 0 only where these "
            f"two are closer together than {100 / factor:.0f} % of their mean, as two values may be by chance. What is "
            "beyond noise here needs more seeds to be believed, and what is not is not shown to be equal: an effect of "
            f"{TYPICAL:g} standard deviations over seeds is found in {_percent(2)} of comparisons with two seeds, in "
            f"{_percent(3)} with three and in {_percent(5)} with five."
        )
    if any(d.how != PAIRED for d in two):
        said.append(
            "Where seeds are not paired, Welch's t has between one degree of freedom and two if both arms have two "
            "seeds: the interval is 4.3 to 12.7 standard errors to each side."
        )
    return [" ".join(said)]


def _percent(seeds: int) -> str:
    return f"{100 * detection_power(TYPICAL, seeds):.0f} %"


def _identical_arms_caution(results: Results) -> list[str]:
    """A caution on arms whose compared values all equal the baseline's, seed by seed."""
    same = [
        row.arm.label
        for row in results.rows
        if row.differences
        and all(d.how == PAIRED and d.mean == 0 and not d.low < 0 for d in row.differences.values())  # NaN: one seed
    ]
    changed = "its change" if len(same) == 1 else "their changes"
    return [f"{_arm_names(same)}: every compared value is the baseline's own; {changed} had no effect."] if same else []


def _diverged_arms_caution(results: Results) -> list[str]:
    """A caution on arms that are not compared because they have values that are not finite."""
    by_why: dict[tuple[str, str], list[str]] = {}
    for row in results.rows:
        for metric in results.metrics:
            cell: Cell = row.cells[metric.key]
            if cell.why.startswith("not finite"):
                by_why.setdefault((label_text(row.arm.label), cell.why), []).append(_metric_name(metric))
    return [f"{label}: {_first_names(metrics)} {why}, so not compared." for (label, why), metrics in by_why.items()]
