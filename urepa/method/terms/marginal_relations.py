"""VA-VAE's marginal distance matrix similarity loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import setting
from urepa.core.descriptions import number
from urepa.method.alignment_terms import OF_TERM, AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


@dataclass
class MarginalRelations(AlignmentTerm):
    """relu(|difference of cosines| − margin), the mean over all N² pairs of a sample's tokens (VA-VAE, arXiv
    2501.01423, whose margin is 0.25)."""

    _target_: str = "urepa.method.terms.marginal_relations.MarginalRelations"
    margin: float = setting("pairs of tokens whose cosines differ by less have no gradient", ge=0, le=2, alters=OF_TERM)
    weight: float = weight_setting()

    compares_tokens = True

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        margin = self.margin
        return lambda student, teacher, mask, gather: terms_math.marginal_relations(student, teacher, mask, margin)

    def formula(self) -> str:
        return (
            r"\frac{1}{N^2} \sum_{m,n} \operatorname{relu}\bigl( \lvert \cos(h(z)_m, h(z)_n)"
            r" - \cos(\tau_m, \tau_n) \rvert - \mu \bigr)"
        )

    def words(self) -> str:
        return f"the difference of the similarities of a sample's tokens, less a margin of μ = {number(self.margin)}"
