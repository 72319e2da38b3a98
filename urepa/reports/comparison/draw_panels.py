"""One panel to PNG, PDF and an SVG that takes its colours from the page around it."""

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
# of middling lightness: they stand out from white paper and from a dark page
COLOURS = ("#2f7fc1", "#d9603b", "#35996b", "#a06cc0", "#bd8f14", "#d65f97", "#2fa3ad")
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
INCHES = (4.9, 3.3)
DPI = 150
SAMPLE = (0, (2.5, 1.5))  # dashes of a dashed line in the legend
QUICK = 3  # of PNG's nine levels of compression: a third of the usual level's time, and little larger
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
    "legend.handlelength": 3.0,  # dashes are seen
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # a name with dollars is a name
    "svg.hashsalt": "urepa",
}


@dataclass(frozen=True)
class Panel:
    """A figure of one axis, or of `grid` rows and columns of them: its file name, where it stands in the report, and
    what draws it; small enough to be sent to another process."""

    name: str
    section: str
    title: str
    draw: Callable[[Any], None]
    inches: tuple[float, float] = INCHES
    note: str = ""  # what the caption says of this figure alone
    grid: tuple[int, int] = (1, 1)  # more than one axis are drawn together, and shown as wide as the page


@dataclass(frozen=True)
class Drawn:
    """A panel as files."""

    panel: Panel
    png: bytes
    pdf: bytes
    svg: str


def draw_all(panels: list[Panel]) -> list[Drawn]:
    """Draws the panels in as many processes as there are CPUs. They are started afresh: a fork of a process with
    threads may hang."""
    workers = min(len(os.sched_getaffinity(0)), MOST_PROCESSES, len(panels))
    if not panels:
        return []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(progress.bar(pool.map(draw, panels), total=len(panels), desc="figures", unit="figure", leave=False))


def draw(panel: Panel) -> Drawn:
    """Lays the panel out once and writes it three times, by the canvases themselves: savefig would draw it seven
    times."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name may hold any character
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
                if line.is_dashed():  # a line's own dashes may be too far apart for its sample here
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
    """Inline SVG: no prologue, comments or fixed size; ids that are this figure's own; the page's colours."""
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
    """Colour and line of an arm: the baseline, index 0, in ink; thin dashes where the colours begin again."""
    if index == 0:
        return {"color": INK, "linestyle": "-"}
    again, colour = divmod(index - 1, len(COLOURS))
    return {"color": COLOURS[colour]} | ({"linestyle": "--", "linewidth": 0.7} if again else {"linestyle": "-"})


def marker_of(index: int) -> str:
    return "o" if index == 0 else MARKERS[(index - 1) % len(MARKERS)]


def shorten(label: str, longest: int = 34) -> str:
    """Shortens a label for an axis or a legend in the middle, as the labels of a sweep begin alike."""
    one_line = " ".join(label.split())
    begin = (longest - 1) // 3
    return one_line if len(one_line) <= longest else f"{one_line[:begin]}…{one_line[begin + 1 - longest :]}"
