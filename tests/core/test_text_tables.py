"""One table for terminal, Markdown and LaTeX, compared with tables written by hand."""

from __future__ import annotations

from urepa.core.text_tables import Table

TABLE = Table("title", ("arm", "a_1", "b"), (("x", "1.0 ± 0.2", "–"), ("y|z", "2", "33")))


def test_markdown() -> None:
    assert TABLE.markdown() == "| arm | a\\_1 | b |\n|---|---|---|\n| x | 1.0 ± 0.2 | – |\n| y\\|z | 2 | 33 |"
    assert TABLE.markdown(":--", "--:").splitlines()[1] == "|:--|--:|--:|"


def test_latex() -> None:
    assert TABLE.tabular("lrr").splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"arm & a\_1 & b \\",
        r"\midrule",
        r"x & 1.0 $\pm$ 0.2 & -- \\",
        r"y\textbar{}z & 2 & 33 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_lines_in_one_block_and_in_two() -> None:
    assert TABLE.lines(20) == [
        "  arm        a_1   b",
        "  x    1.0 ± 0.2   –",
        "  y|z          2  33",
    ]
    assert TABLE.lines(19) == [
        "  arm        a_1",
        "  x    1.0 ± 0.2",
        "  y|z          2",
        "",
        "  arm   b",
        "  x     –",
        "  y|z  33",
    ]


def test_a_column_wider_than_the_terminal_is_alone_with_the_first() -> None:
    assert [line.split() for line in TABLE.part([0, 2, 1]).lines(1)[:2]] == [["arm", "b"], ["x", "–"]]
