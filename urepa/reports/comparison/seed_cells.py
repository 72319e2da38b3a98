"""One value per seed as one cell of a table."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds (NaN with one seed), or the reason `why` there is none."""

    mean: float = nan
    sd: float = nan
    n: int = 0
    why: str = ""

    @property
    def has_value(self) -> bool:
        return self.n > 0


def not_comparable(settings: list[str], than: str = "") -> Cell:
    """An empty cell: these settings differ from the baseline's, or from those of the arm `than`."""
    which = ", ".join(key.removesuffix("._target_") for key in settings)
    return Cell(why=f"not comparable: another {which}{f' than {than}' if than else ''}")


def over_seeds(values: list[float | None], missing: str = "not measured") -> Cell:
    """The cell of one value per seed. Seeds without a value are left out."""
    there = np.array([v for v in values if v is not None])
    if not len(there):
        return Cell(why=missing)
    if not np.isfinite(there).all():
        return Cell(why=f"not finite in {int((~np.isfinite(there)).sum())} of {len(there)} seeds")
    return Cell(float(there.mean()), float(there.std(ddof=1)) if len(there) > 1 else nan, len(there))
