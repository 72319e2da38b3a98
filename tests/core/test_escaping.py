"""Names and config values are plain text in Markdown and LaTeX, whatever characters they contain."""

from __future__ import annotations

import re

import pytest
from latex import unescaped

from urepa.core.escaping import markdown, tex

HOSTILE = (
    '<script>alert("1")</script>',
    "\\input{x}_$\\frac$ 50% & #1 ~^ {z}",
    "😀 ünïcode λ ± 日本",
    "| bars | and\nlines --> ![x](y)",
    "\x1b[31mred",
)


def test_latex() -> None:
    assert tex("a_b & 50 % of $x^2$ {\\input{x}} ~#") == (
        r"a\_b \& 50 \% of \$x\textasciicircum{}2\$ \{\textbackslash{}input\{x\}\} \textasciitilde{}\#"
    )
    assert tex("λ → 0.5\n± 😀") == r"$\lambda$ $\to$ 0.5 $\pm$ {[}U+1F600{]}"


def test_markdown() -> None:
    assert markdown("a\nb *c* <b> & |") == r"a b \*c\* &lt;b&gt; &amp; \|"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str) -> None:
    assert tex(name).isascii()
    assert unescaped(tex(name)) == []
    written = markdown(name)
    assert "\n" not in written
    assert "\x1b" not in written
    assert not re.search(r"<|(?<!\\)[\[\]|!$]", written)
