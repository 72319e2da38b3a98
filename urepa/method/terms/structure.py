"""SARA's structure term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.method.alignment_terms import AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


@dataclass
class Structure(AlignmentTerm):
    """The squared Frobenius norm of the difference of the tokens' autocorrelation matrices (SARA, arXiv 2503.08253): N²
    times the mean over all pairs of a sample's tokens."""

    _target_: str = "urepa.method.terms.structure.Structure"
    weight: float = weight_setting()

    compares_tokens = True

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        return lambda student, teacher, mask, gather: terms_math.structure(student, teacher, mask)

    def formula(self) -> str:
        return r"\sum_{m,n} \bigl( \cos(h(z)_m, h(z)_n) - \cos(\tau_m, \tau_n) \bigr)^2"

    def words(self) -> str:
        return "the squared Frobenius norm of the difference of the autocorrelation matrices of a sample's tokens"
