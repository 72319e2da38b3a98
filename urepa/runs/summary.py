"""summary.json: the results and facts of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.files import read_json

FILE = "summary.json"
# required keys and their types
KEYS = {"experiment": str, "ablation": str, "seed": int, "step": int, "metrics": dict, "seconds": dict}


def read_summary(run: Path) -> dict[str, Any] | None:
    """A run's summary; None if the run is not finished. Raises UserError for a damaged one."""
    file = run / FILE
    if not file.exists():
        return None
    summary: dict[str, Any] = read_json(file)
    if wrong := [key for key, kind in KEYS.items() if not isinstance(summary.get(key), kind)]:
        raise UserError(
            f"{file} is damaged, or another program's: it has no {', '.join(wrong)}; put it back from a copy"
        )
    if not has_valid_end(summary):
        raise UserError(f"{file} is damaged: its ended_early is not that of a run; put it back from a copy")
    return summary


def has_valid_end(summary: dict[str, Any]) -> bool:
    """Whether a summary has no record of an early end, or one with the step, the planned steps and the reason."""
    early = summary.get("ended_early")
    kinds = {"step": int, "of": int, "why": str}
    return early is None or (isinstance(early, dict) and all(type(early.get(key)) is kinds[key] for key in kinds))


def end_step(summary: dict[str, Any] | None, max_steps: int) -> int:
    """The step at which a run is finished: its last one, or an earlier one at which `stop_when` ended it."""
    early = None if summary is None else summary.get("ended_early")
    return max_steps if early is None else int(early["step"])


def is_finished(summary: dict[str, Any] | None, max_steps: int) -> bool:
    """Whether a run of this length is finished."""
    return summary is not None and summary["step"] == end_step(summary, max_steps)


def early_text(summary: dict[str, Any]) -> str:
    """Why a run ended early, as a clause; "" for one that trained all its steps."""
    early = summary.get("ended_early")
    return (
        "" if early is None else f"ended early, at step {early['step']} of {early['of']}, by stop_when: {early['why']}"
    )
