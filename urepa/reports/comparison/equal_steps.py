"""Runs as they were at one step, so that runs that ended early, or still train, are compared with others at an equal
number of updates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from urepa.reports.comparison.read_runs import Run
from urepa.runs.curves import Curve

OF_THE_END = ("seconds", "peak_memory_bytes", "evaluation", "evaluated_by", "ended_early")  # facts of a whole run
NOT_THERE = "not_at_step"  # the fact that a run has no values of the step, with the reason


def at_step(run: Run, step: int) -> Run:
    """The run with the values up to this step and without what was measured at a later end. A run without a validation
    at the step gets the fact `NOT_THERE`, by which it is set apart."""
    if run.damage:
        return run
    ends_there = run.facts.get("step") == step
    curves = {key: _cut(curve, step) for key, curve in run.curves.items() if ends_there or not key.startswith("final/")}
    curves = {key: curve for key, curve in curves.items() if len(curve.steps)}
    validated = any(key.startswith("val/") and curve.steps[-1] == step for key, curve in curves.items())
    left_out = ("ended_early",) if ends_there else OF_THE_END
    facts = {key: value for key, value in run.facts.items() if key not in left_out}
    if "code" in facts:  # what trained later steps does not count
        facts["code"] = [one for one in facts["code"] if one.get("from_step", 0) < step] or facts["code"]
    if not validated:
        facts[NOT_THERE] = f"no validation at step {step}: its last logged step is {run.last_step}"
    return replace(run, curves=curves, facts=facts, status="finished" if validated else run.status)


def _cut(curve: Curve, step: int) -> Curve:
    count = int(np.searchsorted(curve.steps, step, side="right"))
    return Curve(curve.steps[:count], curve.values[:count])


def at_step_sentence(step: int) -> str:
    """The sentence on such a comparison."""
    return (
        f"All values are those at step {step}: of runs that end later, evaluations at their ends and costs are left "
        "out, and learning rate and λ followed the schedules of their own lengths."
    )


def early_sentences(apart: list[Run]) -> list[str]:
    """A sentence on runs that a rule ended early, and how to compare them."""
    early = {run.name: int(run.facts["ended_early"]["step"]) for run in apart if run.facts.get("ended_early")}
    if not early:
        return []
    names = ", ".join(f"{name} at step {step}" for name, step in sorted(early.items())[:4])
    more = ", ..." if len(early) > 4 else ""
    return [
        f"Ended early by their stop rule, and not compared with full runs: {len(early)} ({names}{more}). "
        f"at_step={min(early.values())} compares all runs at an equal step."
    ]
