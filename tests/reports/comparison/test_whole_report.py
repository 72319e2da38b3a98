"""The report in a real browser: all figures are there, tables can be sorted, and it can be read on a large and a small
screen, in light and dark mode."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import browser
import numpy as np
import pytest
from made_up import HOSTILE
from PIL import Image

from urepa.compare import notices, write_report
from urepa.reports.comparison.figures import panels
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.sample_grids import find_in_folder, grids_of, read_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.installed() is None, reason="no Chromium here: install one (apt-get install chromium)"),
]
COLUMN = (
    "[...document.querySelectorAll('#results tbody tr')].map(row => row.cells[{}].innerText.trim().split('\\n')[0])"
)
# the widths that the text may take, and those of the tables' boxes: one
WIDTHS = """
[...new Set([...document.querySelectorAll('main p, main ul, .scroll')]
  .filter(element => element.getClientRects().length && !element.closest('figure, details'))
  .map(element => Math.round(element.getBoundingClientRect().width)))]
"""
BESIDE = """
(([first, second]) => [first.top == second.top && first.right < second.left, first.width == second.width])
([...document.querySelectorAll('.samples img')].map(image => image.getBoundingClientRect()))
"""
OVERFLOWING = """
[...document.querySelectorAll('main *')]
  .filter(element => !element.closest('.scroll') && !element.closest('svg'))
  .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(element => element.outerHTML.slice(0, 80))
"""
COVERED = """
[...document.querySelectorAll('thead button')]
  .filter(head => head.scrollWidth > head.closest('th').clientWidth)
  .map(head => head.innerText)
"""
BROKEN = """
[...document.querySelectorAll('tbody th')].filter(arm => {
  const words = arm.innerText.split(/\\s+/), range = document.createRange()
  range.selectNodeContents(arm)
  const lines = new Set([...range.getClientRects()].map(line => Math.round(line.bottom)))
  return words.every(word => 0 < word.length && word.length <= 15) && lines.size > words.length
}).map(arm => arm.innerText)
"""
FIGURES = """
[...document.querySelectorAll('.figures figure')]
  .filter(figure => figure.querySelector('svg').getBoundingClientRect().width > 250)
  .filter(figure => figure.querySelectorAll('path').length > 3)
  .map(figure => figure.id)
"""


@pytest.fixture
def study(add: Callable[..., None], results: Callable[..., Results], tmp_path: Path) -> Results:
    """A grid over λ and depth, hostile names, and content for every section."""
    for lam in (0.0, 0.25):
        for depth in (1, 2):
            values = {"val/x0_error": 0.2 + lam / 10 + depth / 100, "final/fd/cifar_cnn": 100 - 100 * lam}
            changes = {"loss.lambda_max": lam, "head.depth": depth}
            add(
                changes=changes,
                name=f"{lam},{depth}",
                values=lambda seed, v=values: v | {"val/token": 0.5 + 0.01 * seed},
                course=lambda seed, v=values: {
                    step: {
                        "eval/fd/cifar_cnn": v["final/fd/cifar_cnn"] + 40 - step / 10,
                        "val/diffusion": 0.9 - step / 1e3,
                    }
                    for step in (100, 200, 300, 400)
                },
                images_per_s=50.0 - 40 * lam,
            )
    for i, name in enumerate(HOSTILE):
        add(name, {"head.depth": 3 + i}, name=f"arm{i}", seeds=(0, 1))
    for i in range(2):
        (tmp_path / "outputs" / f"arm{i}" / "seed0" / "samples").mkdir()
        Image.new("RGB", (90, 60), "teal").save(
            tmp_path / "outputs" / f"arm{i}" / "seed0" / "samples" / "step_00000600.png"
        )
    add("half", {"data.limit": 4000}, values=lambda seed: {"final/fd/efficientnet_lite0": 655.0})
    add(seeds=(9,), finished=False, name="unfinished")
    return results(baseline="loss.lambda_max=0,head.depth=1")


def brightness(png: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(png)).convert("L")).mean())


def test_in_a_real_browser(study: Results, tmp_path: Path) -> None:
    write_report(study, notices(study), tmp_path / "report", grids_of(study.study, find_in_folder, read_file))
    file = tmp_path / "report" / "index.html"
    expected = {f"figure-{panel.name}" for panel in panels(study)}
    assert "figure-at_a_glance" in expected
    executable = browser.installed()
    assert executable is not None
    with browser.Page(executable) as page:
        brightnesses = []
        for width in (1280, 390):
            for dark in (False, True):
                page.open(file, width=width, dark=dark)
                assert page.evaluate("innerWidth") == width
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert wide == 0, "the page does not scroll sideways"
                assert page.evaluate(OVERFLOWING) == []
                assert len(page.evaluate(WIDTHS)) == 1, "text is as wide as the tables"
                assert page.evaluate("[...document.images].map(image => image.naturalWidth)") == [90, 90]
                assert page.evaluate(BESIDE) == [width == 1280, True], "grids stand side by side where there is room"
                assert page.evaluate(COVERED) == [], "no column's head reaches into the next"
                assert page.evaluate(BROKEN) == [], "an arm's name breaks between words alone where these are short"
                assert set(page.evaluate(FIGURES)) == expected
                assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 13
                # the same ink is used for text and for figures, and it stands out from the page
                ink = page.evaluate("getComputedStyle(document.body).color")
                glyph = "document.querySelector('figure svg [style*=\"--ink\"]')"
                assert page.evaluate(f"getComputedStyle({glyph}).getPropertyValue('--ink')")
                assert ink == ("rgb(227, 228, 230)" if dark else "rgb(34, 35, 38)")
                brightnesses.append(brightness(page.screenshot()))
        day, night = brightnesses[::2], brightnesses[1::2]
        assert min(day) > 200 > 80 > max(night)

        page.open(file, width=1280)
        head = page.evaluate("[...document.querySelectorAll('#results th button')].map(b => b.innerText)")
        x0 = next(i for i, name in enumerate(head) if name.startswith("x0"))
        column = page.evaluate(COLUMN.format(x0))
        before = [value for value in column if value != "–"]  # the teacher and pixels have none
        empty = ["–"] * (len(column) - len(before))
        assert before != sorted(before, key=float)
        button = f"#results th:nth-child({x0 + 1}) button"
        page.click(button)
        assert page.evaluate(COLUMN.format(x0)) == sorted(before, key=float) + empty
        page.click(button)
        assert page.evaluate(COLUMN.format(x0)) == sorted(before, key=float, reverse=True) + empty
        assert page.evaluate(f"document.querySelector('{button}').parentNode.ariaSort") == "descending"
        page.click("#results th:nth-child(1) button")
        arms = page.evaluate(COLUMN.format(0))
        assert arms[0] != before[0]
        assert len(arms) == len(study.rows) + len(empty)
        total = next(i for i, name in enumerate(head) if name.startswith("total"))
        page.click(f"#results th:nth-child({total + 1}) button")
        values = page.evaluate(COLUMN.format(total))
        assert "≠" not in values[: values.index("≠")]
        assert set(values[values.index("≠") :]) <= {"≠", "–"}, "empty cells stay below"
        assert page.problems == []
