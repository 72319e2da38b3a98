"""Tables as text, and hostile names that try to break them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from latex import pages, unescaped
from made_up import HOSTILE

from urepa.core.escaping import tex
from urepa.reports.comparison.as_csv import as_csv
from urepa.reports.comparison.as_json import as_json
from urepa.reports.comparison.draw_panels import draw
from urepa.reports.comparison.figures import panels
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.tables import NOT_THERE, latex, markdown, results_table, terminal

Summarise = Callable[..., Results]


@pytest.fixture
def hostile(add: Callable[..., None], results: Summarise) -> Results:
    """A baseline, an arm with a hostile name, and one with such a name in a config value."""
    add()
    for i, name in enumerate(HOSTILE):
        add(name, {"head.depth": 3 + i, "data.name": name}, name=f"arm{i}")
    add("unfinished", {"tracking.tags": {HOSTILE[0]: HOSTILE[1]}}, seeds=(9,), finished=False)
    return results()


def test_csv_contains_every_number(add: Callable[..., None], results: Summarise) -> None:
    add()
    add("arm", {"head.depth": 1}, values=lambda seed: {"val/token": 0.4 + 0.001 * seed**2})
    add("w0", {"loss.manifold_weight": 0.0}, seeds=(0,))
    study = results()
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(as_csv(study)))}
    for row in study.rows:
        for key, cell in row.cells.items():
            assert rows[row.arm.label][key] == (repr(cell.mean) if cell.has_value else "")
        for key, found in row.differences.items():
            line = rows[row.arm.label]
            assert float(line[f"{key} difference"]) == found.mean
            assert line[f"{key} p_holm"] == (repr(found.p_holm) if isfinite(found.p_holm) else "")
    assert rows["w0"]["val/total"] == ""
    assert rows["w0"]["val/token p"] == ""
    assert rows["arm"]["changed"] == "head.depth: 2 → 1"


@pytest.mark.slow
def test_csv_contains_no_formula(hostile: Results) -> None:
    cells = [cell for row in csv.reader(io.StringIO(as_csv(hostile))) for cell in row]
    assert any(cell.startswith("'=cmd()") for cell in cells)
    assert not [cell for cell in cells if re.match(r"[=+@]|-[^0-9]", cell)]


@pytest.mark.slow
def test_markdown_is_a_table_whatever_the_names(hostile: Results) -> None:
    text = markdown(replace(hostile, study=replace(hostile.study, why_baseline=f"of {HOSTILE[0]}")))
    assert "<script" not in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 3
    for table in tables:
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1
    assert len(tables[0].splitlines()) == 2 + len(hostile.rows) + 1, "the teacher has a row"


@pytest.mark.slow
def test_latex_rows_have_their_columns(hostile: Results) -> None:
    """Every row of a tabular has as many cells as the first, and environments are closed."""
    text = latex(hostile)
    assert text.isascii()
    opened, closed = (re.findall(rf"\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert opened == ["table", "tabular"] * (len(opened) // 2)
    assert closed == ["tabular", "table"] * (len(opened) // 2)
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    cells = text.replace(" & ", " ").replace(r" \\", "")
    names = [line for line in cells.splitlines() if "script" in line]
    assert names
    assert all(unescaped(line) == [] for line in names)


@pytest.mark.slow
def test_latex_compiles(hostile: Results, tmp_path: Path) -> None:
    pages(latex(hostile), tmp_path)


def test_latex_tables_can_be_read_on_a_page(hostile: Results) -> None:
    """None is wide, each begins with the arms, none has a row without values, and together they have all columns."""
    bodies = re.findall(r"\\toprule\n(.*?)\\bottomrule", latex(hostile), flags=re.DOTALL)
    tables = [[line.removesuffix(r" \\").split(" & ") for line in b.splitlines() if " & " in line] for b in bodies]
    arms = [tex(row.arm.label) for row in hostile.rows]
    results = [table for table in tables if [row[0] for row in table[1:]][: len(arms)] == arms]
    assert len(results) > 1
    whole = results_table(hostile)
    assert [cell for table in results for cell in table[0][1:]] == list(map(tex, whole.headers[1:]))
    assert [cell for table in results for cell in table[1][1:]] == list(map(tex, whole.rows[0][1:]))
    assert all(set(row[1:]) != {tex(NOT_THERE)} for table in tables for row in table)
    assert max(len(table[0]) for table in tables) < 9


def test_control_characters_in_names_do_not_reach_the_terminal(hostile: Results) -> None:
    text = terminal(hostile, 100)
    assert all(c == "\n" or ord(c) >= 32 for c in text)
    assert "\x1b" not in text
    assert all(row.arm.label in text for row in hostile.rows)


class Elements(HTMLParser):
    """Collects all tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.slow
def test_the_page_is_safe_and_complete(hostile: Results) -> None:
    drawn = [draw(panel) for panel in panels(hostile)[::4]]
    found = Elements(page(hostile, drawn, [HOSTILE[0]]))
    assert found.tags.count("script") == 1
    assert not found.handlers
    assert not {"iframe", "object", "embed", "form", "b"} & set(found.tags)
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("#", "data:")) for link in found.links), "nothing is loaded from elsewhere"
    words = " ".join(found.words)
    for name in HOSTILE:
        assert " ".join(name.replace("\x1b", " ").split()) in words, "shown as it is, as text"


@pytest.mark.slow
def test_figures_take_names_as_they_are(hostile: Results) -> None:
    drawn = {panel.name: draw(panel) for panel in panels(hostile)}
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in drawn)
    for figure in drawn.values():
        assert figure.png.startswith(b"\x89PNG")
        assert figure.pdf.startswith(b"%PDF")
        tags = Elements(figure.svg).tags
        assert "script" not in tags
        assert tags[0] == "svg"


def test_json_contains_everything(hostile: Results) -> None:
    found = as_json(hostile)
    assert [arm["label"] for arm in found["arms"]] == [row.arm.label for row in hostile.rows]
    assert found["arms"][0]["differences"] == {}
    assert found["apart"][0]["reason"].startswith("unfinished")


def test_references_are_below_the_arms(add: Callable[..., None], results: Summarise) -> None:
    add(values=lambda seed: {"final/knn/tap": 0.30, "final/untrained_cka": 0.1, "final/cka": 0.4})
    values = {"final/knn/tap": 0.35, "final/knn/teacher": 0.8, "final/knn/untrained_tap": 0.2, "final/pixel_knn": 0.25}
    add("arm", {"head.depth": 1}, values=lambda seed: values | {"final/knn/untrained_tap": 0.2 + 0.01 * seed})
    study = results()
    table = results_table(study)
    assert [row[0] for row in table.rows] == [
        "baseline",
        "arm",
        "the teacher's tokens",
        "the untrained model",
        "pixels",
    ]
    cells = {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    teacher, untrained = cells["the teacher's tokens"], cells["the untrained model"]
    assert (teacher["k-NN: tap\u00a0↑"], teacher["k-NN on the tap\u00a0↑"]) == ("0.8000", "0.8000")
    assert (untrained["k-NN: tap\u00a0↑"], untrained["CKA of the tap\u00a0↑"]) == ("0.210 ± 0.010", "0.1000")
    assert cells["pixels"]["k-NN on the tap\u00a0↑"] == "0.2500"
    assert teacher["total loss\u00a0↓"] == teacher["CKA of the tap\u00a0↑"] == "–"
    html = page(study, [], [])
    for text in (markdown(study), terminal(study, 200), latex(study), html):
        assert "the untrained model" in text
    orientation = html[html.index("For orientation") :].split("</p>")[0]
    assert "predicting zero" in orientation
    assert "teacher" not in orientation, "what has a row is not said again"


def test_metrics_at_several_steps_are_curves(add: Callable[..., None], results: Summarise) -> None:
    found = {"eval/knn/tap": 0.2, "eval/knn/teacher": 0.8, "eval/cka_by_t/mid/0500": 0.1, "val/x0_error": 0.5}
    add(values=lambda seed: {"final/knn/tap": 0.3, "final/cka": 0.1}, course=lambda seed: {300: found})
    shown = [panel.name for panel in panels(results()) if "train" not in panel.name and panel.section == "curves"]
    assert shown == ["curve_val_x0_error", "curve_final_knn_tap"]


def test_the_title_names_data_backbone_and_teacher(
    add: Callable[..., None], results: Summarise, config: dict[str, Any]
) -> None:
    def title() -> str:
        return page(results(), [], []).split("<title>")[1].split("</title>")[0]

    add(seeds=(0,))
    assert title() == "cifar10 · tiny_unet · EfficientNetLite0"
    vit = {"_target_": "urepa.models.teachers.vit.ViT", "model": "hub/<dino>", "grid": [4, 4]}
    add("vit", {"teacher": vit}, seeds=(0,))
    assert title() == "cifar10 · tiny_unet · EfficientNetLite0 + &lt;dino&gt;"
    for i in range(3):
        add(f"vit{i}", {"teacher": vit | {"model": f"dino{i}"}}, seeds=(0,))
    assert title() == "cifar10 · tiny_unet · 5 teachers"


def test_a_title_without_a_teacher(add: Callable[..., None], results: Summarise) -> None:
    add("none", {"loss": {"_target_": "urepa.method.losses.no_loss.NoLoss"}}, seeds=(0,))
    assert "<h1>cifar10 · tiny_unet · no teacher</h1>" in page(results(), [], [])
