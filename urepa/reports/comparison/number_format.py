"""Number formats of a comparison for terminal, page, Markdown and LaTeX. CSV and JSON have all digits.

Rounding never changes a conclusion: on which side of 0 a difference or a bound lies, and on which side of `SIGNIFICANT`
a p lies.
"""

from __future__ import annotations

from math import floor, isfinite, log10, nan

from urepa.reports.comparison.results import SIGNIFICANT, Difference
from urepa.reports.comparison.seed_cells import Cell
from urepa.reports.comparison.statistics import ROUNDING

MOST_DECIMALS, SMALL = 6, 1e-3  # a value below SMALL that needs more decimals is written as 3.200e−07
SMALLEST_P = 0.001
MINUS = "−"


def number(value: float, spread: float = nan) -> str:
    """A number rounded to two digits of its spread, or to four significant digits without a spread. A value that is
    rounded to 0 has no sign."""
    digits = _digits(value, spread)
    if value and digits > MOST_DECIMALS and abs(value) < SMALL:
        return _scientific(value, max(0, min(3, digits + floor(log10(abs(value))))))
    text = f"{value:.{min(max(digits, 0), MOST_DECIMALS)}f}"
    return (text if _is_not_zero(text) else text.removeprefix("-")).replace("-", MINUS)


def _digits(value: float, spread: float) -> int:
    """The number of decimals; it may be negative, or larger than the number that is written."""
    if isfinite(spread) and spread > 0:
        return 1 - floor(log10(spread))
    return 3 if value == 0 else 3 - floor(log10(abs(value)))


def _scientific(value: float, decimals: int) -> str:
    return f"{value:.{decimals}e}".replace("-", MINUS)


def _is_not_zero(text: str) -> bool:
    return any(digit in text for digit in "123456789")


def signed_number(value: float, spread: float) -> str:
    """A number with its sign. A value that would be rounded to 0 gets enough digits to show its sign; 0 itself has no
    sign."""
    text = number(value, spread)
    if value and not _is_not_zero(text):
        decimals = -floor(log10(abs(value)))
        text = _scientific(value, 0) if decimals > MOST_DECIMALS else f"{value:.{decimals}f}".replace("-", MINUS)
    return text if value <= 0 else f"+{text}"


def mean_sd(cell: Cell) -> str:
    """`0.3684 ± 0.0012`; with one seed the mean alone."""
    if not isfinite(cell.sd) or cell.sd <= ROUNDING * abs(cell.mean):
        return number(cell.mean)
    return f"{number(cell.mean, cell.sd)} ± {number(cell.sd, cell.sd)}"


def minutes(value: float) -> str:
    """Minutes as `0.035`, `7.1` or `1,250`."""
    return f"{value:.2g}" if value < 1 else f"{value:,.{0 if value >= 100 else 1}f}"


def minutes_mean_sd(cell: Cell) -> str:
    """`7.12 ± 0.23`; with one seed, or if all seeds are equal, the mean alone."""
    if not isfinite(cell.sd) or cell.sd <= ROUNDING * abs(cell.mean):
        return minutes(cell.mean)
    return mean_sd(cell)


def percent(share: float) -> str:
    """` (64 %)`, to append to a number."""
    return f" ({100 * share:.0f} %)"


def signed_mean_sd(cell: Cell) -> str:
    """`mean_sd` for a difference: `+0.012 ± 0.003`."""
    if not isfinite(cell.sd) or cell.sd <= ROUNDING * abs(cell.mean):
        return signed_number(cell.mean, nan)
    return f"{signed_number(cell.mean, cell.sd)} ± {number(cell.sd, cell.sd)}"


def p_value(p: float) -> str:
    """`p = 0.032`; close to `SIGNIFICANT` with enough digits to show on which side it lies: `p = 0.0497`."""
    if p < SMALLEST_P:
        return f"p < {SMALLEST_P}"
    decimals = 3 if p < 0.1 else 2
    while p != SIGNIFICANT and float(f"{p:.{decimals}f}") == SIGNIFICANT:
        decimals += 1
    return f"p = {p:.{decimals}f}"


def interval(difference: Difference) -> str:
    """The interval as `[−0.002, +0.004]`."""
    half = (difference.high - difference.low) / 2
    return f"[{signed_number(difference.low, half)}, {signed_number(difference.high, half)}]"


def delta(difference: Difference) -> str:
    """The mean difference, rounded to the digits that its interval supports."""
    return signed_number(difference.mean, (difference.high - difference.low) / 2)
