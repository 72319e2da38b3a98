"""Relations between samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from urepa.core.declared_keys import setting
from urepa.method.alignment_terms import OF_TERM, AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


@dataclass
class SampleRelations(AlignmentTerm):
    """Squared difference of the cosines of pooled tokens, the mean over pairs of different samples of the global
    batch."""

    _target_: str = "urepa.method.terms.sample_relations.SampleRelations"
    centred: bool = setting(
        "whether the global batch's mean is subtracted from the pooled tokens first", alters=OF_TERM
    )
    weight: float = weight_setting()

    compares_samples = True

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        centred = self.centred
        return partial(terms_math.sample_relations, centred=centred)

    def formula(self) -> str:
        return r"\frac{1}{B - 1} \sum_{j \ne i} \bigl( \hat h_i \cdot \hat h_j - \hat\tau_i \cdot \hat\tau_j \bigr)^2"

    def words(self) -> str:
        return (
            "the squared difference of the similarities of a sample's pooled tokens with those of the other samples"
            + (", less the batch's mean on each side" if self.centred else "")
        )
