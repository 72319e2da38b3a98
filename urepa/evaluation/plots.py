"""The figure of losses that a run leaves behind."""

from __future__ import annotations

import io
from typing import Any

TERMS = ("diffusion", "token", "manifold")
FLOORS = {"diffusion": "floor/zero_predictor", "token": "floor/constant_token"}


def losses_png(rows: list[dict[str, Any]]) -> bytes:
    """Training and validation curves of each loss term, with its floor where there is one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    terms = [t for t in TERMS if any(f"train/{t}" in row for row in rows)]
    figure = Figure(figsize=(4.2 * len(terms), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, term in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        for key, style in ((f"train/{term}", "-"), (f"val/{term}", "o-")):
            points = [(r["step"], float(r[key])) for r in rows if key in r]
            axis.plot(*zip(*points, strict=True), style, label=key, markersize=4)
        floor = FLOORS.get(term)
        values = [r[floor] for r in rows if floor in r]
        if values:
            axis.axhline(values[-1], linestyle="--", color="grey", label=floor)
        axis.set(title=term, xlabel="step", ylim=(0, None))
        axis.legend(fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
