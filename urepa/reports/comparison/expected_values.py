"""What the description expects of its own experiment (docs/errata.md), beside what that experiment reached."""

from __future__ import annotations

from math import isfinite

import numpy as np

from urepa.reports.comparison.arms import Arm
from urepa.reports.comparison.number_format import mean_sd
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.results import Results, last_cell
from urepa.reports.comparison.seed_cells import over_seeds
from urepa.runs.curves import Curve

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


# The experiment that the values are of, and what of its settings an arm must have for its losses to be those quantities
EXPERIMENT, ARM = "track_a", "baseline"
SETTINGS = {
    "backbone._target_": "urepa.models.backbones.sd15.SD15",
    "objective._target_": "urepa.method.objectives.ddpm_velocity.DDPMVelocity",
    "loss.lambda_max": "0.5",
    "loss.manifold_weight": "3.0",
    "loss.level": "sample",
    "loss.manifold_diagonal": "False",
    "loss.grid": "teacher",
}
STEPS = 62_480  # 40 epochs


def documents_arm(results: Results) -> Arm | None:
    """The arm that is the description's experiment; of several, as of one with other data, the first."""
    return next((row.arm for row in results.rows if _is_the_documents(row.arm)), None)


def _is_the_documents(arm: Arm) -> bool:
    named = any((run.experiment, run.ablation) == (EXPERIMENT, ARM) for run in arm.runs.values())
    return named and all(arm.config.get(key) == value for key, value in SETTINGS.items())


def reported_rows(arm: Arm) -> list[tuple[str, str, str, str]]:
    """Rows (what, reported, measured, section): the description's expected values next to the arm's."""
    rows = []
    for term, when, value, section in REPORTED:
        cell = over_seeds([_at(run, f"train/{term}", when) for run in arm.runs.values()])
        rows.append((f"training {term} loss, {when}", value, mean_sd(cell) if cell.has_value else cell.why, section))
    for what, key, value, section in REPORTED_LAST:
        cell = last_cell(arm, key)
        rows.append((what, value, mean_sd(cell) if cell.has_value else cell.why, section))
    return rows


def of_steps(arm: Arm) -> str:
    """A sentence where the arm is of another length than the description's run; else nothing."""
    steps = int(arm.config["trainer.max_steps"])
    if steps == STEPS:
        return ""
    return f"The description's run has {STEPS:,} steps and this one {steps:,}: epochs are shares of its own steps."


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
