"""The mathematics of `several_terms`. Shapes: B batch, N tokens, D width of the teacher's tokens."""

from __future__ import annotations

from torch import Tensor

from urepa.core.protocols import ScheduleMath
from urepa.method.losses.several_terms import SeveralTerms
from urepa.method.losses.urepa_loss_math import AlignmentLoss
from urepa.method.training_step import Gather


class SeveralTermsLoss(AlignmentLoss):
    """`AlignmentLoss` with other terms. All are per sample, so that validation weighs each sample equally. In an
    incomplete validation group, terms that compare samples count each pair of them twice."""

    def __init__(self, settings: SeveralTerms, schedule: ScheduleMath) -> None:
        super().__init__(settings, schedule)
        self.token_weight, self.compares_lengths = settings.token_weight, settings.compares_lengths
        self.weights = {name: term.weight for name, term in settings.named_terms.items()}
        self.terms = {name: term.build() for name, term in settings.named_terms.items()}

    def other_terms(
        self, student_BND: Tensor, teacher_BND: Tensor, gather: Gather, mask_BN: Tensor | None
    ) -> dict[str, Tensor]:
        return {
            name: term(student_BND if self.weights[name] else student_BND.detach(), teacher_BND, mask_BN, gather)
            for name, term in self.terms.items()
        }

    def combined(self, token_B: Tensor, other_B: dict[str, Tensor]) -> Tensor:
        value_B = self.token_weight * token_B
        for name, weight in self.weights.items():
            value_B = value_B + weight * other_B[name]
        return value_B
