"""The gap between training and validation: how far a loss term differs between training and held-out samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from urepa.reports.comparison.arms import Arm
from urepa.reports.comparison.by_step import LAMBDA
from urepa.reports.comparison.number_format import mean_sd, signed_mean_sd, signed_number
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.seed_cells import Cell, over_seeds

TERMS = ("total", "diffusion", "token", "manifold")
LAST_SHARE = 0.1  # the training loss is averaged over this share of the steps before the validation
ANOTHER_LAMBDA, MISSING = "λ changes", "not measured"
EXPLANATION = (
    "Train: the mean of the rows logged in the last 10 % of the steps before the last validation (single batches, raw "
    "weights). Validation: all held-out samples, EMA weights. Gap: validation less train, seed by seed. It holds "
    "overfitting, but also the lag of the average, the conditions that training drops and, for the manifold loss, "
    "which samples share a batch."
)


@dataclass(frozen=True)
class Gap:
    """A term's training loss, validation loss and their difference over seeds. `share`: the gap as a share of the
    training loss (NaN if that is not above 0)."""

    train: Cell
    validation: Cell
    gap: Cell

    @property
    def share(self) -> float:
        return self.gap.mean / self.train.mean if self.gap.has_value and self.train.mean > 0 else float("nan")


def gaps(results: Results) -> dict[str, dict[str, Gap]]:
    """The gaps by arm label and term, for all terms for which any arm has both losses; empty cells for other arms."""
    found = {row.arm.label: {term: gap_of(row.arm, term) for term in TERMS} for row in results.rows}
    there = [term for term in TERMS if any(terms[term].gap.why != MISSING for terms in found.values())]
    return {label: {term: terms[term] for term in there} for label, terms in found.items()} if there else {}


def gap_of(arm: Arm, term: str) -> Gap:
    """The gap over the seeds that have both losses."""
    pairs = [pair for run in arm.runs.values() if (pair := _pair(run, term)) is not None]
    if term == "total" and pairs and not all(_at_one_lambda(run) for run in arm.runs.values()):
        return Gap(*[Cell(why=ANOTHER_LAMBDA)] * 3)
    return Gap(
        over_seeds([train for train, _ in pairs], MISSING),
        over_seeds([validation for _, validation in pairs], MISSING),
        over_seeds([validation - train for train, validation in pairs], MISSING),
    )


def _pair(run: Run, term: str) -> tuple[float, float] | None:
    """A run's mean training loss before its last validation, and the loss of that validation."""
    train, validation = run.curves.get(f"train/{term}"), run.curves.get(f"val/{term}")
    if train is None or validation is None:
        return None
    within = _window(train.steps, int(validation.steps[-1]))
    return (float(train.values[within].mean()), float(validation.values[-1])) if within.any() else None


def _window(steps: np.ndarray, end: int) -> np.ndarray:
    """A mask of the logged steps to average: those in the last tenth up to `end`, or the last one if there is none."""
    within = (steps <= end) & (steps > end * (1 - LAST_SHARE))
    return within if within.any() else np.arange(len(steps)) == np.searchsorted(steps, end, side="right") - 1


def _at_one_lambda(run: Run) -> bool:
    """Whether the total was weighted with the same λ in all averaged rows and in the validation. True if no λ is
    logged."""
    there = [run.curves[key] for key in ("train/lambda", LAMBDA) if key in run.curves]
    if not there or "val/total" not in run.curves:
        return True
    end = int(run.curves["val/total"].steps[-1])
    values = [there[0].values[_window(there[0].steps, end)], *(curve.values[-1:] for curve in there[1:])]
    return bool(np.ptp(np.concatenate(values)) <= 1e-9)


def gap_texts(gap: Gap) -> tuple[str, str, str]:
    """Train, validation, and the gap as `+0.012 ± 0.003 (+2 %)`."""
    if not gap.gap.has_value:
        why = gap.gap.why if gap.gap.why == ANOTHER_LAMBDA or "finite" in gap.gap.why else "–"
        return why, why, why
    share = f" ({percent(gap.share)})" if np.isfinite(gap.share) else ""
    return mean_sd(gap.train), mean_sd(gap.validation), f"{signed_mean_sd(gap.gap)}{share}"


def percent(share: float) -> str:
    """`+2.4 %`, `−13 %`, `+750 %`."""
    return f"{signed_number(100 * share, max(1.0, abs(100 * share)))} %"
