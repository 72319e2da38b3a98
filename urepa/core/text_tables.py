"""A table of texts as lines for a terminal, as Markdown and as LaTeX, for all commands that write tables.

tabulate and its like would not save the escaping, which is most of it, nor the blocks of a wide table. Captions and
LaTeX's table environments are the callers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from urepa.core.escaping import markdown, tex


@dataclass(frozen=True)
class Table:
    """Headers and rows of plain text, all of one length, and a title, which the methods below leave to the caller.
    `numbers`: do the columns behind the first hold values and not prose?"""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = True

    def widths(self) -> list[int]:
        """The characters of each column's longest text."""
        return [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]

    def part(self, columns: Sequence[int]) -> Table:
        """The table of these columns."""
        headers, *rows = (tuple(row[i] for i in columns) for row in (self.headers, *self.rows))
        return Table(self.title, headers, tuple(rows), self.numbers)

    def lines(self, width: int) -> list[str]:
        """For a terminal: as many blocks as columns need where a line has `width` characters, an empty line between
        them. Control characters are left to the caller."""
        widths = self.widths()
        lines: list[str] = []
        for block in blocks(widths, width):
            lines += [""] if lines else []
            for row in (self.headers, *self.rows):
                lines.append("".join(f"  {row[i]:{'>' if i else '<'}{widths[i]}}" for i in block))
        return lines

    def markdown(self, first: str = "---", others: str = "---") -> str:
        """Markdown, escaped; `first` and `others`: what aligns the first column and the others, as `--:`."""
        head, *rows = (f"| {' | '.join(map(markdown, row))} |" for row in (self.headers, *self.rows))
        return "\n".join([head, f"|{'|'.join([first, *[others] * (len(self.headers) - 1)])}|", *rows])

    def tabular(self, columns: str) -> str:
        r"""LaTeX's tabular with booktabs' rules, escaped; `columns`: LaTeX's own, as `lrr` or `lp{4cm}`."""
        head, *rows = (" & ".join(map(tex, row)) + r" \\" for row in (self.headers, *self.rows))
        body = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
        return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}"


def blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each block that is not wider than `width`, where that can be; the first column in each."""
    found = [[0]]
    for i in range(1, len(widths)):
        if len(found[-1]) > 1 and sum(2 + widths[j] for j in (*found[-1], i)) > width:
            found.append([0])
        found[-1].append(i)
    return found
