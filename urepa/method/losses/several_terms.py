"""REPA's and U-REPA's loss with other alignment terms beside their two."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import TERMS, TOTAL
from urepa.core.declared_keys import LARGEST, part, setting
from urepa.core.descriptions import Formula, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric
from urepa.core.protocols import Schedule
from urepa.core.term_protocols import Term
from urepa.method.losses.urepa_loss import URepaLoss

if TYPE_CHECKING:
    from urepa.method.losses.several_terms_math import SeveralTermsLoss


@dataclass
class SeveralTerms(URepaLoss):
    """L_diff + λ(step)·[v·L_token + w·L_manifold + Σ w_k·L_k], averaged over taps and teachers with their weights. The
    terms L_k are parts of their own (`conf/term`), each logged as term/NAME."""

    _target_: str = "urepa.method.losses.several_terms.SeveralTerms"
    token_weight: float = setting(
        "v: the weight of the token loss; 0: it is logged and not trained on", 1.0, ge=0, le=LARGEST, alters=(TOTAL,)
    )
    terms: dict[str, Any] = part("the other terms, by name", {})

    metrics: ClassVar[tuple[Metric, ...]] = (
        *URepaLoss.metrics,
        Metric(f"val/{TERMS}", "other alignment terms", "↓", trained_by=("loss.lambda_max", "loss.terms")),
    )

    @property
    def named_terms(self) -> dict[str, Term]:
        """The terms by name."""
        return self.terms

    @property
    def compares_lengths(self) -> bool:
        """Whether heads leave the lengths of tokens as they are."""
        return any(term.compares_lengths for term in self.named_terms.values())

    @property
    def compares_tokens(self) -> bool:
        return super().compares_tokens or any(term.compares_tokens for term in self.named_terms.values())

    def check(self) -> None:
        super().check()
        if not self.terms:
            raise UserError(
                "loss=several_terms has no other terms: +term@loss.terms.NAME=FILE of conf/term for each; for the "
                "token and the manifold loss alone, choose another loss"
            )
        for name, term in self.named_terms.items():
            if re.fullmatch("[A-Za-z0-9]+", name) is None:
                raise UserError(f"loss.terms.{name}: a term's name may only have letters and digits")
            term.check()
        if not self.token_weight and not self.manifold_weight and not any(t.weight for t in self.named_terms.values()):
            raise UserError("all weights of the alignment are 0; to train without alignment, loss.lambda_max=0")

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        super().check_layout(smallest_group, accumulation)
        for name, term in self.named_terms.items():
            if term.compares_samples and smallest_group < 2:
                raise UserError(
                    f"loss.terms.{name} compares samples with each other, but a batch has {smallest_group}; give "
                    "trainer.batch_size and trainer.validation_group of 2 or more, or drop the term"
                )
            if term.compares_samples and accumulation > 1:
                raise UserError(
                    f"loss.terms.{name} compares all samples of a batch, which trainer.accumulation={accumulation} "
                    "splits into several parts; give trainer.accumulation=1, or drop the term"
                )

    def build(self, *, schedule: Schedule, max_steps: int) -> SeveralTermsLoss:
        from urepa.method.losses.several_terms_math import SeveralTermsLoss

        self.check()
        self.check_schedule(schedule, max_steps)
        return SeveralTermsLoss(self, schedule.build(warmup_steps=self.warmup_steps, max_steps=max_steps))

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        blocks = super().description(schedule=schedule, max_steps=max_steps)
        return [
            *blocks,
            f"In the bracket v = {number(self.token_weight)}, and the other terms are these."
            + (" The token term is logged and not trained on." if self.token_weight == 0 else ""),
            *(block for name, term in self.named_terms.items() for block in term.description(name)),
        ]

    def _bracket(self, manifold: str) -> str:
        others = "".join(
            rf" + {number(term.weight)}\, \mathcal{{L}}_{{\mathrm{{{name}}}}}"
            for name, term in self.named_terms.items()
        )
        return rf"v\, {super()._bracket(manifold)}{others}"

    def model_card(self) -> str:
        weights = ", ".join(f"{name} {term.weight:g}" for name, term in self.named_terms.items())
        return f"{super().model_card()}, v = {self.token_weight:g} and the terms {weights}"
