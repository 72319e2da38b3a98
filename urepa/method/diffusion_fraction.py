"""A fraction of a batch as p of every q samples."""

from __future__ import annotations

from fractions import Fraction

from urepa.core.errors import UserError

LARGEST = 64  # q


def strata(fraction: float) -> tuple[int, int]:
    """p and q of a fraction p/q in [0,1], q at most LARGEST. Raises UserError if no such p/q equals the fraction."""
    ratio = Fraction(fraction).limit_denominator(LARGEST)
    if abs(ratio - Fraction(fraction)) > Fraction(1, 10**9):
        raise UserError(f"loss.diffusion_fraction={fraction}: give p/q with q of at most {LARGEST}, such as 0.25")
    return ratio.numerator, ratio.denominator
