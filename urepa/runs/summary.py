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
    return summary
