"""A table of texts as lines for a terminal, as Markdown and as LaTeX, for all commands that write tables.

tabulate and similar packages have neither the escaping, which is most of the work, nor the split of a wide table.
Callers add captions and LaTeX's table environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from urepa.core.escaping import markdown, tex


@dataclass(frozen=True)
class Table:
    """Headers and rows of plain text, all of the same length, and a title, which the methods below do not write.
    `numbers`: whether the columns after the first have values rather than prose."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = True

    def widths(self) -> list[int]:
        """The length of each column's longest text in characters."""
        return [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]

    def part(self, columns: Sequence[int]) -> Table:
        """The table with only these columns."""
        headers, *rows = (tuple(row[i] for i in columns) for row in (self.headers, *self.rows))
        return Table(self.title, headers, tuple(rows), self.numbers)

    def lines(self, width: int) -> list[str]:
        """The lines for a terminal, in as many blocks of columns as needed for lines of `width` characters, with an
        empty line between blocks. The caller must remove control characters."""
        widths = self.widths()
        lines: list[str] = []
        for block in blocks(widths, width):
            lines += [""] if lines else []
            for row in (self.headers, *self.rows):
                lines.append("".join(f"  {row[i]:{'>' if i else '<'}{widths[i]}}" for i in block))
        return lines

    def markdown(self, first: str = "---", others: str = "---") -> str:
        """Markdown, escaped. `first` and `others`: alignment of the first column and of the others, such as `--:`."""
        head, *rows = (f"| {' | '.join(map(markdown, row))} |" for row in (self.headers, *self.rows))
        return "\n".join([head, f"|{'|'.join([first, *[others] * (len(self.headers) - 1)])}|", *rows])

    def tabular(self, columns: str) -> str:
        r"""LaTeX's tabular with the rules of booktabs, escaped. `columns`: in LaTeX's syntax, `lrr` or `lp{4cm}`."""
        head, *rows = (" & ".join(map(tex, row)) + r" \\" for row in (self.headers, *self.rows))
        body = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
        return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}"


def blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """The column indices of each block, at most `width` wide if possible; each block begins with the first column."""
    found = [[0]]
    for i in range(1, len(widths)):
        if len(found[-1]) > 1 and sum(2 + widths[j] for j in (*found[-1], i)) > width:
            found.append([0])
        found[-1].append(i)
    return found
