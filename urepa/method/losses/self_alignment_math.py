"""The base class of the mathematics of losses without a teacher (`urepa.method.self_alignment`).

Shapes: B batch, R rows of it that have a diffusion term, here all, G gathered (global) batch, N tokens, D widths.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from urepa.core.abstract import Abstract
from urepa.core.errors import UserError
from urepa.core.protocols import ScheduleMath
from urepa.core.types import Batch, Tokens
from urepa.method.self_alignment import OWN, OwnStates
from urepa.method.step_schedules import linear_warmup
from urepa.method.training_step import Aligned, Gather, Terms


class SelfAlignment(Abstract):
    """L_diff + λ(step)·L_align (`urepa.core.protocols.LossMath`), where L_align is the mean of a term per sample, a
    term of the global batch, or their sum. A subclass gives `terms`.

    Args:
        settings: those of the loss.
        schedule: the shape of λ after its warm-up, with its state in this run.
    """

    taps: Mapping[str, float] = {}
    teachers: Mapping[str, float] = {}
    diffusion_fraction = 1.0
    time_power = 0.0
    spatial_norm: float | None = None
    manifold_weight = 1.0  # the weight of the batch's term beside the samples'
    batch_term = "manifold"  # the name under which the batch's term is logged

    def __init__(self, settings: Any, schedule: ScheduleMath) -> None:
        self.settings, self.schedule = settings, schedule
        self.lambda_max: float = settings.lambda_max
        self.own_states: OwnStates = settings.own_states

    def heads(self, widths: Mapping[str, int]) -> dict[str, nn.Module]:
        """Heads of its own, by tap, with weights drawn from torch's generator. Raises UserError if the widths of the
        states, by tap, do not fit together."""
        return {}

    def known(self, batch: Batch, objective: Any) -> dict[str, Tensor]:
        """What the terms need of the batch and the objective, by name (`Aligned.known`)."""
        return {}

    @abstractmethod
    def terms(self, output: Aligned, gather: Gather) -> tuple[dict[str, Tensor], Tensor | None]:
        """The alignment term of each sample [B] by its name, at most one, and that of the global batch or None."""

    # --- the same for all -----------------------------------------------------------------------------------------

    def lam(self, step: int) -> float:
        """λ of the update with this index."""
        return linear_warmup(step, self.lambda_max, self.settings.warmup_steps) * self.schedule.value(step)

    def is_at_peak(self, step: int) -> bool:
        """Whether the warm-up is over and `stop_step` is not reached; always True if `lambda_max` is 0."""
        peak = linear_warmup(step, self.lambda_max, self.settings.warmup_steps)
        return (0.0 if self.schedule.is_stopped(step) else peak) >= self.lambda_max

    def is_spike(self, terms: Terms, step: int) -> Tensor | None:
        return None

    def __call__(
        self,
        diffusion_R: Tensor,
        output: Aligned,
        batch: Batch,
        step: int,
        gather: Gather,
        weight_B: Tensor | float = 1.0,
    ) -> Terms:
        """After the end of the alignment the diffusion term alone; own heads stay in the graph, which must be equal on
        all ranks."""
        diffusion = diffusion_R.mean()
        if not batch.is_aligned:
            unused = sum((tokens.x_BND.sum() for tokens in output.tokens.values()), diffusion_R.new_zeros(()))
            return Terms(diffusion + 0.0 * unused, {"diffusion": diffusion_R})
        per_sample, of_batch = self.terms(output, gather)
        weighted_B = sum(per_sample.values(), diffusion_R.new_zeros(len(batch.x0)))
        alignment = weighted_B.mean() if of_batch is None else weighted_B.mean() + self.manifold_weight * of_batch
        return Terms(
            diffusion + self.lam(step) * alignment,
            {"diffusion": diffusion_R} | per_sample,
            alignment,
            of_batch,
            batch.rows_R,
            weighted_B,
            self.batch_term,
        )


def student_and_target(settings: Any, output: Aligned, targets: Mapping[str, Tokens]) -> tuple[Tokens, Tokens]:
    """The output of the own head on `student`, and the state of `teacher` among the targets. Raises UserError unless
    they have one grid, all of whose tokens count."""
    student, target = output.tokens[f"{settings.student}/{OWN}"], targets[settings.teacher]
    if student.grid != target.grid or student.mask_BN is not None or target.mask_BN is not None:
        raise UserError(
            f"loss.student={settings.student} has {student.grid} tokens and loss.teacher={settings.teacher} "
            f"{target.grid}: give two taps of one grid whose tokens all count"
        )
    return student, target
