"""Findings as sentences: the result of each metric, and the outcome of the description's rules."""

from __future__ import annotations

from math import isfinite

from urepa.core.alignment_progress import KEYS, early_gain, slow_sentence
from urepa.core.ema_initial_weights import LAGGING, SHARE, initial_share, lag_sentence
from urepa.reports.comparison.arms import Arm
from urepa.reports.comparison.by_clock import unlike_machines
from urepa.reports.comparison.criteria import criteria_remarks
from urepa.reports.comparison.evaluation_protocol import WEIGHTS_FILE
from urepa.reports.comparison.metric_columns import EPISODES, SKIPPED, SPIKES
from urepa.reports.comparison.number_format import delta, number
from urepa.reports.comparison.read_runs import Run, as_text
from urepa.reports.comparison.results import Difference, Results, last_cell, missing_reason
from urepa.reports.comparison.steps_saved import race_sentences
from urepa.reports.comparison.validation_gap import gap_of

MARKS = (
    ("●", "the 95 % interval excludes 0, after Holm over the arms too"),
    ("◐", "the interval excludes 0, but not after Holm"),
    ("○", "the interval does not exclude 0"),
)
CHANCE = "were there no difference at all, about one in 20 would still show one"
NAMED_AT_MOST = 4  # arms in a sentence
MUCH_HIGHER = 1.10  # according to the description, up to 10 % is "normal and healthy"


# --- findings -----------------------------------------------------------------------------------------------


def findings(results: Results) -> list[str]:
    """A sentence for each metric in which an arm differs from the baseline by more than noise, after Holm or before;
    one for all metrics without a difference, one for those that could not be tested, and one with the number of metrics
    that were looked at. The last sentence says how early an arm reaches the baseline's final value."""
    found: list[str] = []
    same: dict[str, list[str]] = {}
    untested: dict[str, list[str]] = {}
    lost: dict[str, list[str]] = {}
    for metric in results.metrics:
        by_label = {r.arm.label: r.differences[metric.key] for r in results.rows if metric.key in r.differences}
        tested = sum(isfinite(d.p) for d in by_label.values())
        if any(d.mark in ("●", "◐") for d in by_label.values()):
            found.append(f"{_capitalise(metric.label)}: {_finding(by_label, tested)}")
        elif tested:
            same.setdefault(f"No difference beyond noise in {_family(tested)}", []).append(metric.label)
        if alone := {label: d.why for label, d in by_label.items() if not isfinite(d.p)}:
            who = "" if len(alone) == len(by_label) else f"{_arm_names(list(alone))}: "
            why = "; ".join(sorted(set(alone.values())))
            untested.setdefault(f"{who}{why}" if who else _capitalise(why), []).append(metric.label)
        if why := next((text for row in results.rows if (text := missing_reason(results, row, metric.key))), ""):
            lost.setdefault(f"Nothing is compared with the {why}", []).append(metric.label)
    looked_at = len(found) + sum(map(len, same.values()))
    found += [f"{what}: {'; '.join(labels)}" for what, labels in same.items()]
    found += [f"{why} ({'; '.join(labels)})" for why, labels in (untested | lost).items()]
    if looked_at > 1:
        found.append(
            f"{looked_at} metrics were looked at, and Holm is over the arms of each, not over the metrics: {CHANCE}"
        )
    return found + race_sentences(results)


def _capitalise(text: str) -> str:
    """Capitalises the first letter unless the second is a capital: KID stays KID, k-NN becomes K-NN."""
    return text if text[1:2].isupper() else text[0].upper() + text[1:]


def _family(tested: int) -> str:
    return "the one comparison" if tested == 1 else f"{tested} comparisons"


def _finding(by_label: dict[str, Difference], tested: int) -> str:
    found = {label: d for label, d in by_label.items() if d.mark == "●"}
    before = [label for label, d in by_label.items() if d.mark == "◐"]
    near = f"; before Holm only: {_arm_names(before)}" if before else ""
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


def _arm_names(labels: list[str]) -> str:
    return "; ".join(labels) if len(labels) <= NAMED_AT_MOST else f"{len(labels)} arms"


# --- the average that validation uses -----------------------------------------------------------------------


def initial_share_of(run: Run) -> float:
    """The weight of the initial weights in the EMA weights at the run's end, in [0, 1]. It is read from the log; for
    older runs, which did not log it, it is computed from the config and the skipped steps."""
    logged = run.last(SHARE)
    return initial_share(*_average(run)) if logged is None else logged


def _average(run: Run) -> tuple[float, int, bool]:
    """Decay, number of applied updates, and whether the decay warms up."""
    skipped = run.last(SKIPPED)
    updates = run.last_step - (0 if skipped is None else int(skipped))
    return float(run.config["trainer.ema_decay"]), updates, run.config["trainer.ema_warmup"] == "True"


def has_ema_lag(arm: Arm) -> bool:
    """Whether, in any seed, more than 5 % of the EMA weights are still the initial weights."""
    return any(initial_share_of(run) > LAGGING for run in arm.runs.values())


def ema_lag_sentences(results: Results) -> list[str]:
    """A sentence for each share of initial weights above 5 %, with the arms that have it."""
    arms: dict[str, list[str]] = {}
    for row in results.rows:
        if has_ema_lag(row.arm):
            run = max(row.arm.runs.values(), key=initial_share_of)
            arms.setdefault(lag_sentence(initial_share_of(run), *_average(run)), []).append(row.arm.label)
    return [f"{_arm_names(labels)}: {sentence}" for sentence, labels in arms.items()]


# --- the description's rules -----------------------------------------------------------------------------------

OVERFITTING = (
    ("total", "val/total is well above train/total: the model overfits; more weight decay may help"),
    ("token", "val/token is well above train/token: the head overfits"),
    (
        "manifold",
        "val/manifold is well above train/manifold: other samples share a batch, so the model need not overfit",
    ),
)


def overfitting_sentences(results: Results) -> list[str]:
    """The description's rule on overfitting (docs/errata.md). Validation uses the EMA weights. If they lag, the
    difference to the training loss measures the lag, and the arm is not judged."""
    remarks = []
    measured = [row for row in results.rows if any(_ratio(row.arm, term) is not None for term, _ in OVERFITTING)]
    judged = [row for row in measured if not has_ema_lag(row.arm)]
    for term, meaning in OVERFITTING:
        arms = []
        for row in judged:
            ratio = _ratio(row.arm, term)
            if ratio is not None and ratio > MUCH_HIGHER:
                arms.append(f"{row.arm.label} (+{ratio - 1:.0%})")
        if arms:
            remarks.append(f"{meaning}: {', '.join(arms)}")
    unjudged = [row.arm.label for row in measured if has_ema_lag(row.arm)]
    if judged and not remarks:
        which = "every other arm" if unjudged else "every arm"
        remarks.append(f"none of the three signs of overfitting: validation is within 10 % of training in {which}")
    if unjudged:
        remarks.append(
            "not judged, as validation is of EMA weights that still hold more than "
            f"{LAGGING * 100:g} % of the initial weights: {_arm_names(unjudged)}"
        )
    return remarks


def _ratio(arm: Arm, term: str) -> float | None:
    """The last validation loss divided by the mean of the last training losses."""
    share = gap_of(arm, term).share
    return 1 + share if isfinite(share) else None


def other_remarks(results: Results) -> list[str]:
    """Other facts that a reader should know before relying on the tables."""
    remarks = []
    runs = [run for row in results.rows for run in row.arm.runs.values()]
    for row in results.rows:
        loss, floor_ = last_cell(row.arm, "val/diffusion"), last_cell(row.arm, "floor/zero_predictor")
        if loss.has_value and floor_.has_value and loss.mean > floor_.mean:
            advice = "the EMA weights lag" if has_ema_lag(row.arm) else "check objective, learning rate and data"
            remarks.append(
                f"{row.arm.label}: the diffusion loss {number(loss.mean)} is worse than predicting zero "
                f"({number(floor_.mean)}); {advice}"
            )
        remarks += spike_remarks(row.arm)
    remarks += criteria_remarks(results)
    remarks += slow_alignments(results)
    remarks += [
        f"{difference}: their costs and times cannot be compared" for difference in unlike_machines(results.study)
    ]
    remarks += encoders_weights(runs)
    torches = sorted({run.facts["versions"]["torch"] for run in runs if "versions" in run.facts})
    if len(torches) > 1:
        remarks.append(f"runs were made with several versions of torch: {', '.join(torches)}")
    return remarks


def slow_alignments(results: Results) -> list[str]:
    """A sentence for each arm with runs whose alignment did not improve at their beginning."""
    remarks = []
    for row in results.rows:
        texts = {seed: text for seed, run in row.arm.runs.items() if (text := _slow_alignment(run))}
        if texts:
            seeds = f" (seed{'s' * (len(texts) > 1)} {', '.join(map(str, texts))})"
            remarks.append(f"{row.arm.label}{seeds}: {next(iter(texts.values()))}")
    return remarks


def _slow_alignment(run: Run) -> str:
    """The remark on one run; "" if there is none."""
    weight = float(run.config.get("loss.lambda_max", 0))
    taps = [key.removeprefix("loss.taps.") for key in run.config if key.startswith("loss.taps.")]
    if weight == 0 or not taps:
        return ""
    curves = (run.curves[key] for key in KEYS if key in run.curves)
    gains = [early_gain(zip(curve.steps.tolist(), curve.values.tolist(), strict=True)) for curve in curves]
    return slow_sentence(gains, taps, weight, run.config.get("optimizer.lr.head", "none"))


def spike_remarks(arm: Arm) -> list[str]:
    """A sentence part on the spikes of an arm's runs: how often, and for how many updates. Runs of before episodes were
    counted have a rate alone."""
    runs = list(arm.runs.values())
    spikes = sum(run.last(SPIKES) or 0.0 for run in runs)
    if not spikes or float(runs[0].config.get("loss.lambda_max", 0)) == 0:  # nothing is trained by that loss
        return []
    episodes = sum(run.last(EPISODES) or 0.0 for run in runs)
    recovery = f"; it recovered after {spikes / episodes:.1f} updates on average" if episodes else ""
    rate = 1000 * spikes / sum(run.last_step for run in runs)
    return [f"{arm.label}: {rate:.1f} spikes of the manifold loss in 1,000 updates{recovery}"]


def encoders_weights(runs: list[Run]) -> list[str]:
    """A sentence part on each encoder read from a file: the digest of its weights, and its accuracy as a classifier."""
    found: dict[str, None] = {}
    for run in runs:
        told = as_text({"evaluation": run.facts.get("evaluation", {})})
        for key, digest in told.items():
            if key.endswith(f"{WEIGHTS_FILE}sha256"):
                place = key.removesuffix(f"{WEIGHTS_FILE}sha256")
                accuracy = told.get(f"{place}{WEIGHTS_FILE}accuracy")
                stated = "" if accuracy is None else f", a classifier of accuracy {accuracy} on test images"
                found[f"the weights of {place.removeprefix('evaluation.')} are sha256 {digest[:12]}{stated}"] = None
    return list(found)
