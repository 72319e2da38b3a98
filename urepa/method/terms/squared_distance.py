"""Feature matching by the mean squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.method.alignment_terms import AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


@dataclass
class SquaredDistance(AlignmentTerm):
    """The mean squared difference between projected tokens and targets, lengths included (FitNets, arXiv 1412.6550,
    eq. 3, without its factor 1/2)."""

    _target_: str = "urepa.method.terms.squared_distance.SquaredDistance"
    weight: float = weight_setting()

    compares_lengths = True

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        return lambda student, teacher, mask, gather: terms_math.squared_distance(student, teacher, mask)

    def formula(self) -> str:
        return r"\frac{1}{N D} \sum_{n} \lVert h(z)_n - \tau_n \rVert_2^2"

    def words(self) -> str:
        return "the mean squared difference between projected tokens, which are not normalised, and targets"
