"""Numbers and findings in words: how a value is written, what a metric says, what the document's rules say."""

from __future__ import annotations

from math import floor, isfinite, log10

import numpy as np

from urepa.averaging import LAGGING, SHARE, initial_share, lag
from urepa.comparison.arms import Arm
from urepa.comparison.comparable import SKIPPED
from urepa.comparison.results import Difference, Results, last_cell, without
from urepa.comparison.runs import Run
from urepa.comparison.seeds import Cell, over_seeds
from urepa.comparison.statistics import ROUNDING
from urepa.curves import Curve

MARKS = (
    ("●", "the 95 % interval excludes 0, after Holm over the arms too"),
    ("◐", "the interval excludes 0, but not after Holm"),
    ("○", "the interval does not exclude 0"),
)
CHANCE = "were there no difference at all, about one in 20 would still show one"
MOST_DECIMALS, SMALL = 6, 1e-3  # a smaller value that needs more is written as 3.200e−07
NAMED_AT_MOST = 4  # arms, in a sentence
MUCH_HIGHER = 1.10  # spec 000 §7.2: up to 10 % is "normal and healthy"
END_OF_TRAINING = 0.1  # the share of a training curve that is averaged against validation


# --- numbers ------------------------------------------------------------------------------------------------


def number(value: float, spread: float = float("nan")) -> str:
    """Two digits of the spread decide how many are worth writing; without one, four significant digits."""
    if isfinite(spread) and spread > 0:
        digits = 1 - floor(log10(spread))
    else:
        digits = 3 if value == 0 else 3 - floor(log10(abs(value)))
    if value and digits > MOST_DECIMALS and abs(value) < SMALL:
        return f"{value:.{max(0, min(3, digits + floor(log10(abs(value)))))}e}".replace("-", "−")
    return f"{value:.{min(max(digits, 0), MOST_DECIMALS)}f}".replace("-", "−")


def signed(value: float, spread: float) -> str:
    text = number(value, spread)
    return text if text.startswith("−") else f"+{text}"


def mean_sd(cell: Cell) -> str:
    """`0.3684 ± 0.0012`, the mean alone with one seed."""
    if not isfinite(cell.sd) or cell.sd <= ROUNDING * abs(cell.mean):
        return number(cell.mean)
    return f"{number(cell.mean, cell.sd)} ± {number(cell.sd, cell.sd)}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def interval(difference: Difference) -> str:
    """`[−0.002, +0.004]`."""
    half = (difference.high - difference.low) / 2
    return f"[{signed(difference.low, half)}, {signed(difference.high, half)}]"


def delta(difference: Difference) -> str:
    """The mean difference, to the digits that its interval supports."""
    return signed(difference.mean, (difference.high - difference.low) / 2)


# --- findings -----------------------------------------------------------------------------------------------


def findings(results: Results) -> list[str]:
    """A sentence for each metric in which an arm differs from the baseline by more than noise, after Holm or before;
    one for all metrics in which none does, one for those that could not be tested, and how many were looked at."""
    found: list[str] = []
    same: dict[str, list[str]] = {}
    untested: dict[str, list[str]] = {}
    lost: dict[str, list[str]] = {}
    for metric in results.metrics:
        by_label = {r.arm.label: r.differences[metric.key] for r in results.rows if metric.key in r.differences}
        tested = sum(isfinite(d.p) for d in by_label.values())
        if any(d.mark in ("●", "◐") for d in by_label.values()):
            found.append(f"{_capital(metric.label)}: {_finding(by_label, tested)}")
        elif tested:
            same.setdefault(f"No difference beyond noise in {_family(tested)}", []).append(metric.label)
        if alone := {label: d.why for label, d in by_label.items() if not isfinite(d.p)}:
            who = "" if len(alone) == len(by_label) else f"{_some(list(alone))}: "
            why = "; ".join(sorted(set(alone.values())))
            untested.setdefault(f"{who}{why}" if who else _capital(why), []).append(metric.label)
        if why := next((text for row in results.rows if (text := without(results, row, metric.key))), ""):
            lost.setdefault(f"Nothing is compared with the {why}", []).append(metric.label)
    looked_at = len(found) + sum(map(len, same.values()))
    found += [f"{what}: {'; '.join(labels)}" for what, labels in same.items()]
    found += [f"{why} ({'; '.join(labels)})" for why, labels in (untested | lost).items()]
    if looked_at > 1:
        found.append(
            f"{looked_at} metrics were looked at, and Holm is over the arms of each, not over the metrics: {CHANCE}"
        )
    return found


def _capital(text: str) -> str:
    """Not where the second letter is one: KID stays KID, and k-NN becomes K-NN."""
    return text if text[1:2].isupper() else text[0].upper() + text[1:]


def _family(tested: int) -> str:
    return "the one comparison" if tested == 1 else f"{tested} comparisons"


def _finding(by_label: dict[str, Difference], tested: int) -> str:
    found = {label: d for label, d in by_label.items() if d.mark == "●"}
    before = [label for label, d in by_label.items() if d.mark == "◐"]
    near = f"; before Holm only: {_some(before)}" if before else ""
    if not found:
        return f"no difference beyond noise in {_family(tested)}{near}"
    if len(found) <= NAMED_AT_MOST:
        which = "; ".join(f"{label} ({delta(d)})" for label, d in found.items())
    else:
        ends = sorted(found.values(), key=lambda d: d.mean)
        which = f"by {delta(ends[0])} to {delta(ends[-1])}"
    return (
        f"differs: {which}"
        if tested == 1
        else f"differs in {len(found)} of {tested} comparisons after Holm: {which}{near}"
    )


def _some(labels: list[str]) -> str:
    return "; ".join(labels) if len(labels) <= NAMED_AT_MOST else f"{len(labels)} arms"


# --- the average that validation uses -----------------------------------------------------------------------


def initial_share_of(run: Run) -> float:
    """The weight of the initial weights in the EMA weights at the run's end, in [0, 1]: as logged; of older runs, which
    did not log it, as the config and the skipped steps say."""
    logged = run.last(SHARE)
    return initial_share(*_average(run)) if logged is None else logged


def _average(run: Run) -> tuple[float, int, bool]:
    """Decay, applied updates, warm-up."""
    skipped = run.last(SKIPPED)
    updates = run.last_step - (0 if skipped is None else int(skipped))
    return float(run.config["trainer.ema_decay"]), updates, run.config["trainer.ema_warmup"] == "True"


def lags(arm: Arm) -> bool:
    """Is more than 5 % of a seed's EMA weights still the initial weights?"""
    return any(initial_share_of(run) > LAGGING for run in arm.runs.values())


def lagging(results: Results) -> list[str]:
    """A sentence for each share of initial weights above 5 %, on the arms that have it."""
    arms: dict[str, list[str]] = {}
    for row in results.rows:
        if lags(row.arm):
            run = max(row.arm.runs.values(), key=initial_share_of)
            arms.setdefault(lag(initial_share_of(run), *_average(run)), []).append(row.arm.label)
    return [f"{_some(labels)}: {sentence}" for sentence, labels in arms.items()]


# --- the document's rules -----------------------------------------------------------------------------------

OVERFITTING = (
    ("total", "val/total is well above train/total: overfitting; the document advises more weight decay"),
    ("token", "val/token is well above train/token: the head overfits"),
    (
        "manifold",
        "val/manifold is well above train/manifold: other samples share a batch; the document calls it normal",
    ),
)


def overfitting(results: Results) -> list[str]:
    """Spec 000 §7.2, "Tracking Overfitting". Validation is of the EMA weights: where those lag, its distance to the
    training loss is the lag, and the arm is not judged."""
    remarks = []
    measured = [row for row in results.rows if any(_ratio(row.arm, term) is not None for term, _ in OVERFITTING)]
    judged = [row for row in measured if not lags(row.arm)]
    for term, meaning in OVERFITTING:
        arms = []
        for row in judged:
            ratio = _ratio(row.arm, term)
            if ratio is not None and ratio > MUCH_HIGHER:
                arms.append(f"{row.arm.label} (+{ratio - 1:.0%})")
        if arms:
            remarks.append(f"{meaning}: {', '.join(arms)}")
    unjudged = [row.arm.label for row in measured if lags(row.arm)]
    if judged and not remarks:
        which = "every other arm" if unjudged else "every arm"
        remarks.append(f"none of the three signs of overfitting: validation is within 10 % of training in {which}")
    if unjudged:
        remarks.append(
            "not judged, as validation is of EMA weights that still hold more than "
            f"{LAGGING * 100:g} % of the initial weights: {_some(unjudged)}"
        )
    return remarks


def _ratio(arm: Arm, term: str) -> float | None:
    """The last validation loss over the mean of the last training losses, over seeds."""
    validation, training = (
        last_cell(arm, f"val/{term}"),
        over_seeds([_end(run, f"train/{term}") for run in arm.runs.values()]),
    )
    if not validation.filled or not training.filled or training.mean <= 0:
        return None
    return validation.mean / training.mean


def _end(run: Run, key: str) -> float | None:
    curve = run.curves.get(key)
    if curve is None:
        return None
    return float(curve.values[curve.steps >= curve.steps[-1] * (1 - END_OF_TRAINING)].mean())


def other_remarks(results: Results) -> list[str]:
    """What else a reader should know before believing the tables."""
    remarks = []
    runs = [run for row in results.rows for run in row.arm.runs.values()]
    for row in results.rows:
        loss, floor_ = last_cell(row.arm, "val/diffusion"), last_cell(row.arm, "floor/zero_predictor")
        if loss.filled and floor_.filled and loss.mean > floor_.mean:
            advice = "the EMA weights lag" if lags(row.arm) else "check objective, learning rate and data"
            remarks.append(
                f"{row.arm.label}: the diffusion loss {number(loss.mean)} is worse than predicting zero "
                f"({number(floor_.mean)}); {advice}"
            )
    for name in ("device", "processes", "threads"):
        there = sorted({str(run.facts[name]) for run in runs if name in run.facts})
        if len(there) > 1:
            remarks.append(f"runs differ in {name} ({', '.join(there)}): their costs do not compare")
    torches = sorted({run.facts["versions"]["torch"] for run in runs if "versions" in run.facts})
    if len(torches) > 1:
        remarks.append(f"runs were made with several versions of torch: {', '.join(torches)}")
    return remarks


# --- the document's expected values -------------------------------------------------------------------------

START, EARLY, WARM, MIDDLE, END = "start", "epoch 5 of 40", "after warm-up", "epoch 20 of 40", "end"
REPORTED = (
    ("diffusion", START, "2.05", "§10.1"),
    ("diffusion", EARLY, "1.95", "§10.1"),
    ("diffusion", MIDDLE, "1.75", "§10.1"),
    ("diffusion", END, "1.67", "§10.1"),
    ("token", START, "1.00", "§10.1"),
    ("token", WARM, "0.66", "§10.1"),
    ("token", MIDDLE, "0.67", "§10.1"),
    ("token", END, "0.65 to 0.70", "§10.1"),
    ("manifold", START, "0.30", "§10.1"),
    ("manifold", WARM, "0.02", "§10.1"),
    ("manifold", MIDDLE, "0.015", "§10.1"),
    ("manifold", END, "0.01 to 0.04", "§10.1"),
    ("total", START, "2.10", "§10.1"),
    ("total", WARM, "2.15", "§10.1"),
    ("total", MIDDLE, "2.08", "§10.1"),
    ("total", END, "2.00 to 2.05", "§10.1"),
)
REPORTED_LAST = (
    ("validation total loss", "val/total", "2.25", "§10.2"),
    ("validation diffusion loss", "val/diffusion", "1.68", "§10.2"),
    ("validation token loss", "val/token", "0.65", "§10.2"),
    ("validation manifold loss", "val/manifold", "0.17", "§10.2"),
    ("token cosine similarity", "val/cosine", "0.30 to 0.35", "§11.2"),
    ("MAE of sample similarities", "final/similarity_mae", "0.15 to 0.20", "§11.2"),
    ("nearest-neighbour recall", "final/neighbour_recall", "60 to 70 %", "§11.2"),
)


def reported(results: Results) -> list[tuple[str, str, str, str]]:
    """(what, reported, measured, section): the document's expected values beside the baseline's."""
    baseline = results.study.baseline
    rows = []
    for term, when, value, section in REPORTED:
        cell = over_seeds([_at(run, f"train/{term}", when) for run in baseline.runs.values()])
        rows.append((f"training {term} loss, {when}", value, mean_sd(cell) if cell.filled else cell.why, section))
    for what, key, value, section in REPORTED_LAST:
        cell = last_cell(baseline, key)
        rows.append((what, value, mean_sd(cell) if cell.filled else cell.why, section))
    return rows


def is_the_documents(results: Results) -> bool:
    """Is the baseline SD-1.5, of which the document's values are?"""
    return results.study.baseline.config.get("backbone._target_", "").endswith(".sd15")


def _at(run: Run, key: str, when: str) -> float | None:
    """A training curve's mean within 2 % of the run around a moment; the first row at the start."""
    curve: Curve | None = run.curves.get(key)
    if curve is None:
        return None
    steps = float(run.config["trainer.max_steps"])
    warm = float(run.config.get("loss.warmup_steps", "nan"))
    moment = {START: 0.0, EARLY: steps / 8, WARM: warm, MIDDLE: steps / 2, END: steps}[when]
    if not isfinite(moment) or moment > steps:  # a run that ends in its warm-up has no "after"
        return None
    if when == START:
        return float(curve.values[0])
    near = np.abs(curve.steps - moment) <= max(0.02 * steps, float(np.abs(curve.steps - moment).min()))
    return float(curve.values[near].mean())
