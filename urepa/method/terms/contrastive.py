"""A contrastive term."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from urepa.core.declared_keys import LARGEST, TINY, setting
from urepa.core.descriptions import number
from urepa.method.alignment_terms import OF_TERM, AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


class Negatives(Enum):
    image = "image"
    batch = "batch"


@dataclass
class Contrastive(AlignmentTerm):
    """NT-Xent with projected tokens as queries and targets as keys (the alternative to the cosine in REPA, arXiv
    2410.06940; NT-Xent is that of SimCLR, arXiv 2002.05709, eq. 1, here in one direction)."""

    _target_: str = "urepa.method.terms.contrastive.Contrastive"
    negatives: Negatives = setting(
        "the keys besides a token's own target: the image's other targets, or those of all images of the global batch",
        alters=OF_TERM,
    )
    temperature: float = setting("divides the cosines", ge=TINY, le=LARGEST, alters=OF_TERM)
    weight: float = weight_setting()

    @property
    def compares_samples(self) -> bool:  # type: ignore[override]
        return str(self.negatives) == "batch"

    @property
    def compares_tokens(self) -> bool:  # type: ignore[override]
        return str(self.negatives) == "image"

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        temperature = self.temperature
        if self.compares_samples:
            return partial(terms_math.contrast_batch, temperature=temperature)
        return lambda student, teacher, mask, gather: terms_math.contrast_within(student, teacher, mask, temperature)

    def formula(self) -> str:
        own = r"\exp(\cos(h(z)_n, \tau_n) / T)"
        return rf"\frac{{1}}{{N}} \sum_{{n}} -\log \frac{{{own}}}{{\sum_{{\tau'}} \exp(\cos(h(z)_n, \tau') / T)}}"

    def words(self) -> str:
        return f"NT-Xent at T = {number(self.temperature)}, with the targets τ' of " + (
            "all images of the global batch" if self.compares_samples else "the image"
        )
