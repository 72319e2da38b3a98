"""The mathematics of `reg`. Shapes: B batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from urepa.core.class_token_protocols import CLASS_TOKEN
from urepa.core.protocols import ScheduleMath
from urepa.core.types import Batch
from urepa.method.losses.reg import Reg
from urepa.method.losses.urepa_loss_math import AlignmentLoss
from urepa.method.training_step import Aligned, Gather, Terms


class RegLoss(AlignmentLoss):
    """`AlignmentLoss` with the class token's diffusion term.

    Args:
        settings: those of the loss.
        schedule: the shape of λ after its warm-up, with its state in this run.
    """

    has_class_token = True

    def __init__(self, settings: Reg, schedule: ScheduleMath) -> None:
        super().__init__(settings, schedule)
        # the weights of terms in the total that λ does not multiply, by name
        self.beside_diffusion: Mapping[str, float] = {CLASS_TOKEN: settings.class_weight}

    def __call__(
        self,
        diffusion_R: Tensor,
        output: Aligned,
        batch: Batch,
        step: int,
        gather: Gather,
        weight_B: Tensor | float = 1.0,
    ) -> Terms:
        terms = super().__call__(diffusion_R, output, batch, step, gather, weight_B)
        class_B = output.known[CLASS_TOKEN]
        # with a weight of 0 its layers stay in the graph, which must be equal on all ranks
        total = terms.total + self.beside_diffusion[CLASS_TOKEN] * class_B.mean()
        return replace(terms, total=total, per_sample=terms.per_sample | {CLASS_TOKEN: class_B})
