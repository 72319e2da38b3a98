"""The mathematics of `self_transcendence`. Shapes: B batch, N tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from urepa.core.types import Batch
from urepa.method.losses.own_head_math import Perceptron, between, mean_square
from urepa.method.losses.self_alignment_math import SelfAlignment, student_and_target
from urepa.method.training_step import Aligned, Gather

COUNTS = "counts"


class SelfTranscendenceLoss(SelfAlignment):
    """The mean squared difference of a state behind a head to a guided state of a frozen model."""

    @property
    def guidance(self) -> float:
        """The strength of guidance of the frozen model's state."""
        return float(self.settings.guidance)

    def heads(self, widths: Mapping[str, int]) -> dict[str, nn.Module]:
        student, teacher = self.settings.student, self.settings.teacher
        return {student: Perceptron(widths[student], self.settings.hidden, widths[teacher])}

    def known(self, batch: Batch, objective: Any) -> dict[str, Tensor]:
        return {COUNTS: between(objective, batch.t_B, self.settings.times)}

    def terms(self, output: Aligned, gather: Gather) -> tuple[dict[str, Tensor], Tensor | None]:
        student, target = student_and_target(self.settings, output, output.frozen)
        return {"guided_distance": output.known[COUNTS] * mean_square(student.x_BND, target.x_BND)}, None
