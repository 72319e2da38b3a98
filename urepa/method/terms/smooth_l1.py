"""Feature matching by the smooth L1 loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import LARGEST, TINY, setting
from urepa.core.descriptions import number
from urepa.method.alignment_terms import OF_TERM, AlignmentTerm, weight_setting

if TYPE_CHECKING:
    from urepa.core.term_protocols import TermMath


@dataclass
class SmoothL1(AlignmentTerm):
    """The smooth L1 difference between projected tokens and targets, lengths included (Fast R-CNN, arXiv 1504.08083,
    eq. 3, where beta is 1)."""

    _target_: str = "urepa.method.terms.smooth_l1.SmoothL1"
    beta: float = setting(
        "difference up to which the loss is quadratic; above it, it is linear", ge=TINY, le=LARGEST, alters=OF_TERM
    )
    weight: float = weight_setting()

    compares_lengths = True

    def build(self) -> TermMath:
        from urepa.method.terms import terms_math

        beta = self.beta
        return lambda student, teacher, mask, gather: terms_math.smooth_l1_distance(student, teacher, mask, beta)

    def formula(self) -> str:
        return (
            r"\frac{1}{N D} \sum_{n,d} s(h(z)_{nd} - \tau_{nd}), \qquad s(x) ="
            r" \begin{cases} x^2 / 2\beta & |x| < \beta \\ |x| - \beta / 2 & \text{otherwise} \end{cases}"
        )

    def words(self) -> str:
        return (
            f"the smooth L1 difference, with β = {number(self.beta)}, between projected tokens, which are not "
            "normalised, and targets"
        )
