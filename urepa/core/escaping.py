"""Names and values as text in Markdown and LaTeX: whatever they hold, they are shown and do nothing.

pylatexenc would do LaTeX alone; nothing was found for Markdown.
"""

from __future__ import annotations

import html
import re

TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "[": "{[}",  # behind \\ a bracket or an asterisk would be an argument of it
    "]": "{]}",
    "*": "{*}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # \textquotedbl is not there in the default encoding
    "`": r"\textasciigrave{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "ε": r"$\epsilon$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "≤": r"$\le$",
    "λ": r"$\lambda$",
    "●": r"$\bullet$",
    "◐": r"$\odot$",
    "○": r"$\circ$",
    "≠": r"$\neq$",
    "†": r"$\dagger$",
    "–": "--",
    "—": "---",
    "§": r"\S{}",
}


def printable(text: str) -> str:
    """Without control characters: a name cannot drive the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


def markdown(text: object) -> str:
    """One line without HTML, links, table bars and emphasis."""
    one_line = html.escape(printable(" ".join(str(text).split())), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$!])", r"\\\1", one_line)


def tex(text: object) -> str:
    """For LaTeX with any engine: what plain ASCII cannot say and has no name here is written as its code."""
    one_line = printable(" ".join(str(text).split()))
    return "".join(TEX.get(c, c if " " <= c < "\x7f" else f"{{[}}U+{ord(c):04X}{{]}}") for c in one_line)
