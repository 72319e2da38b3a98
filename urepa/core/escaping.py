"""Escapes names and values for Markdown, LaTeX and spreadsheets, so that any text is displayed literally.

pylatexenc covers only LaTeX; no library was found for Markdown.
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
    "[": "{[}",  # after \\ a bracket or an asterisk would be its argument
    "]": "{]}",
    "*": "{*}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # \textquotedbl does not exist in the default encoding
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
    """The text without control characters, so that a name cannot control the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


def markdown(text: object) -> str:
    """One line of Markdown in which HTML, links, table bars and emphasis are escaped."""
    one_line = html.escape(printable(" ".join(str(text).split())), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$!])", r"\\\1", one_line)


def tex(text: object) -> str:
    """LaTeX for any engine: characters that are neither ASCII nor have a name here are written as their code."""
    one_line = printable(" ".join(str(text).split()))
    return "".join(TEX.get(c, c if " " <= c < "\x7f" else f"{{[}}U+{ord(c):04X}{{]}}") for c in one_line)


def spreadsheet_text(text: str) -> str:
    """A cell of a CSV file: a text that a spreadsheet would interpret as a formula is prefixed with an apostrophe."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text
