"""VA-VAE's marginal cosine similarity loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import setting
from urepa.core.descriptions import number
from urepa.method.alignment_terms import OF_TERM, AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


@dataclass
class MarginalCosine(AlignmentTerm):
    """relu(1 − margin − cos) (VA-VAE, arXiv 2501.01423, whose margin is 0.5)."""

    _target_: str = "urepa.method.terms.marginal_cosine.MarginalCosine"
    margin: float = setting("tokens whose cosine is at least 1 - margin have no gradient", ge=0, le=2, alters=OF_TERM)
    weight: float = weight_setting()

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        margin = self.margin
        return lambda student, teacher, mask, gather: terms_math.marginal_cosine(student, teacher, mask, margin)

    def formula(self) -> str:
        return r"\frac{1}{N} \sum_{n} \operatorname{relu}\bigl( 1 - m - \cos(h(z)_n, \tau_n) \bigr)"

    def words(self) -> str:
        return f"the token loss less a margin of m = {number(self.margin)}"
