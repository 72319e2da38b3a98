"""Writes a text of sections as Markdown and LaTeX. Strings are escaped in both; a Formula already is LaTeX."""

from __future__ import annotations

from dataclasses import dataclass

from urepa.core.descriptions import Formula
from urepa.core.escaping import markdown as md
from urepa.core.escaping import tex
from urepa.core.text_tables import Table

PACKAGES = r"% \usepackage{amsmath,amssymb,booktabs,textcomp}"


Block = str | Formula | Table


@dataclass(frozen=True)
class Section:
    """A title and the blocks below it; a string is a paragraph."""

    title: str
    blocks: tuple[Block, ...]


# --- Markdown -----------------------------------------------------------------------------------------------


def as_markdown(title: str, sections: list[Section]) -> str:
    """The text as Markdown."""
    parts = [f"# {md(title)}"]
    for section in sections:
        parts += [f"## {md(section.title)}", *map(_markdown, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Formula):
        return f"$$\n{block.latex}\n$$"
    if isinstance(block, str):
        return md(block)
    return f"*{md(block.title)}*\n\n{block.markdown(':--', '--:' if block.numbers else ':--')}"


# --- LaTeX --------------------------------------------------------------------------------------------------


def as_latex(title: str, sections: list[Section]) -> str:
    r"""The text for \input, which needs amsmath, booktabs and textcomp."""
    parts = [PACKAGES, rf"\section{{{tex(title)}}}"]
    for section in sections:
        parts += [rf"\subsection{{{tex(section.title)}}}", *map(_latex, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _latex(block: Block) -> str:
    if isinstance(block, Formula):
        return f"\\[\n{block.latex}\n\\]"
    if isinstance(block, str):
        return tex(block)
    columns = "l" + ("r" * (len(block.headers) - 1) if block.numbers else "p{0.6\\linewidth}")
    return (
        f"\\begin{{table}}[ht]\n\\centering\n\\caption{{{tex(block.title)}}}\n{block.tabular(columns)}\n\\end{{table}}"
    )
