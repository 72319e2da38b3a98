"""Relations between the tokens of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import setting
from urepa.method.alignment_terms import OF_TERM, AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


@dataclass
class TokenRelations(AlignmentTerm):
    """Squared difference of cosines, the mean over pairs of different tokens of a sample."""

    _target_: str = "urepa.method.terms.token_relations.TokenRelations"
    centred: bool = setting("whether each image's mean token is subtracted from its tokens first", alters=OF_TERM)
    weight: float = weight_setting()

    compares_tokens = True

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        centred = self.centred
        return lambda student, teacher, mask, gather: terms_math.token_relations(student, teacher, mask, centred)

    def formula(self) -> str:
        return r"\frac{1}{N (N - 1)} \sum_{m \ne n} \bigl( \cos(h(z)_m, h(z)_n) - \cos(\tau_m, \tau_n) \bigr)^2"

    def words(self) -> str:
        return "the squared difference of the similarities of a sample's tokens" + (
            ", less the sample's mean token on each side" if self.centred else ""
        )
