"""The figures in a run's folder."""

from __future__ import annotations

import io

from urepa.runs.curves import Curve, thin_curve

TERMS = ("diffusion", "token", "manifold", "dispersive", "self_distance")
FLOORS = {"diffusion": "floor/zero_predictor", "token": "floor/constant_token"}

# inches of a panel of losses.png, of its axes, and of the room at the left of and below them
PANEL, SIZE, LEFT, BOTTOM = (4.2, 3.2), (3.4, 2.4), 0.7, 0.5

DRAWN = {f"{kind}/{term}" for kind in ("train", "val") for term in TERMS} | set(FLOORS.values())


def losses_png(curves: dict[str, Curve]) -> bytes:
    """Training and validation curves of each loss term, with its reference value if there is one. `curves` has the keys
    in `DRAWN`. Validation uses the EMA weights; the label says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    terms = [t for t in TERMS if f"train/{t}" in curves]
    width = PANEL[0] * len(terms)
    figure = Figure(figsize=(width, PANEL[1]))
    FigureCanvasAgg(figure)
    for place, term in enumerate(terms):
        # places are fixed, with room for seven digits beside an axis: a layout engine lays out every text twice
        axis = figure.add_axes(
            ((PANEL[0] * place + LEFT) / width, BOTTOM / PANEL[1], SIZE[0] / width, SIZE[1] / PANEL[1])
        )
        for key, of, style in ((f"train/{term}", "", "-"), (f"val/{term}", " (EMA)", "o-")):
            if key in curves:
                axis.plot(*thin_curve(curves[key]), style, label=f"{key}{of}", markersize=4)
        floor = FLOORS.get(term)
        if floor in curves:
            axis.axhline(curves[floor].values[-1], linestyle="--", color="grey", label=floor)
        is_negative = any(curves[key].values.min() < 0 for key in (f"train/{term}", f"val/{term}") if key in curves)
        axis.set(title=term, xlabel="step", ylim=(None if is_negative else 0, None))
        axis.legend(fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def curves_png(panels: dict[str, dict[str, list[tuple[float, float]]]], xlabel: str) -> bytes:
    """A figure with one panel per title, three per row; each panel has one line per label through its (x, y) points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for label, points in curves.items():
            axis.plot(*zip(*points, strict=True), "o-", label=label, markersize=4)
        axis.set(title=title, xlabel=xlabel)
        axis.legend(fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
