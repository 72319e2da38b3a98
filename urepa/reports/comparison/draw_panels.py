"""Writes a panel as PNG, PDF and an SVG that takes its colours from the surrounding page."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from urepa.core import progress

INK, RULE, MUTED = "#222326", "#dcdde0", "#74777d"
# of medium lightness, so that they are visible on white paper and on a dark page
COLOURS = ("#2f7fc1", "#d9603b", "#35996b", "#a06cc0", "#bd8f14", "#d65f97", "#2fa3ad")
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
INCHES = (4.9, 3.3)
DPI = 150
SAMPLE = (0, (2.5, 1.5))  # dash pattern of a dashed line in the legend
QUICK = 3  # PNG compression level (of 9): a third of the default level's time, and little larger files
MOST_PROCESSES = 8
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.0,  # long enough to show the dashes
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # dollar signs in a name are not mathematics
    "svg.hashsalt": "urepa",
}


@dataclass(frozen=True)
class Panel:
    """A figure of one axis, or of `grid` rows and columns of axes: its file name, its section in the report, and the
    function that draws it. It is small enough to be sent to another process."""

    name: str
    section: str
    title: str
    draw: Callable[[Any], None]
    inches: tuple[float, float] = INCHES
    note: str = ""  # a sentence of the caption for this figure alone
    grid: tuple[int, int] = (1, 1)  # a figure with more than one axis is shown as wide as the page


@dataclass(frozen=True)
class Drawn:
    """The files of a drawn panel."""

    panel: Panel
    png: bytes
    pdf: bytes
    svg: str


def draw_all(panels: list[Panel]) -> list[Drawn]:
    """Draws the panels in as many processes as there are CPUs. The processes are spawned, because forking a process
    with threads may hang."""
    workers = min(len(os.sched_getaffinity(0)), MOST_PROCESSES, len(panels))
    if not panels:
        return []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(progress.bar(pool.map(draw, panels), total=len(panels), desc="figures", unit="figure", leave=False))


def draw(panel: Panel) -> Drawn:
    """Computes the layout once and writes the three files with matplotlib's canvases: `savefig` would draw the figure
    seven times."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name may contain any character
        figure = Figure(figsize=panel.inches, layout="constrained", dpi=DPI)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(*panel.grid)
        panel.draw(axes)
        if panel.grid == (1, 1):
            axes.set_title(panel.title)
        else:
            figure.suptitle(panel.title, x=0.01, ha="left")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if labels:
            columns = 1 if max(map(len, labels)) > 30 else 2
            lines = -(-len(labels) // columns)
            figure.set_size_inches(panel.inches[0], panel.inches[1] + 0.17 * lines)
            legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
            for line in legend.findobj(Line2D):
                if line.is_dashed():  # the line's own dashes may be too far apart for the legend
                    line.set_linestyle(SAMPLE)
        png, pdf, svg = io.BytesIO(), io.BytesIO(), io.StringIO()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        canvas.print_png(png, pil_kwargs={"compress_level": QUICK})
        figure.patch.set_alpha(0)
        for axis in figure.axes:
            axis.patch.set_alpha(0)
        FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    return Drawn(panel, png.getvalue(), pdf.getvalue(), _for_a_page(svg.getvalue(), panel.name))


def _for_a_page(svg: str, name: str) -> str:
    """The SVG for inline use: without prologue, comments and fixed size, with unique ids and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in ((INK, "--ink"), (RULE, "--rule"), (MUTED, "--muted")):
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()


def style_of(index: int) -> dict[str, Any]:
    """Colour and line style of an arm: the baseline (index 0) is drawn in ink; when the colours repeat, lines are
    dashed."""
    if index == 0:
        return {"color": INK, "linestyle": "-"}
    again, colour = divmod(index - 1, len(COLOURS))
    return {"color": COLOURS[colour]} | ({"linestyle": "--", "linewidth": 0.7} if again else {"linestyle": "-"})


def marker_of(index: int) -> str:
    return "o" if index == 0 else MARKERS[(index - 1) % len(MARKERS)]


def shorten(label: str, longest: int = 34) -> str:
    """Shortens a label for an axis or a legend in the middle, because the labels of a sweep begin alike."""
    one_line = " ".join(label.split())
    begin = (longest - 1) // 3
    return one_line if len(one_line) <= longest else f"{one_line[:begin]}…{one_line[begin + 1 - longest :]}"
