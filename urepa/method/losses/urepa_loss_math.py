"""The mathematics of `urepa_loss`. Shapes: B batch, R rows of it that have a diffusion term, G gathered (global) batch,
N tokens, D widths.

A token counts if neither the student's mask nor the teacher's excludes it: in the token loss, in both levels of the
manifold loss and in their logged values. Only `spatial_norm` uses the teacher's mask alone, so that targets do not
depend on the student. Targets are resized last, each to the grid on which a tap is compared, which is its head's output
grid.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from urepa.core.comparability import TERMS
from urepa.core.protocols import ScheduleMath
from urepa.core.types import Batch, Tokens
from urepa.method.alignment_grids import TEACHER
from urepa.method.losses import loss_math
from urepa.method.losses.loss_math import UnitTokens
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.step_schedules import linear_warmup
from urepa.method.training_step import Aligned, Gather, Terms, shares_of
from urepa.models.layers import resize_tokens
from urepa.models.teachers.several_teachers import name_at


class AlignmentLoss:
    """L_diff + λ(step)·[L_token + w·L_manifold], with the formulas of `loss_math`.

    Args:
        settings: those of the loss.
        schedule: the shape of λ after its warm-up, with its state in this run.
    """

    token_weight = 1.0

    def __init__(self, settings: URepaLoss, schedule: ScheduleMath) -> None:
        self.settings, self.schedule = settings, schedule
        self.taps, self.teachers, self.levels = settings.taps, settings.teachers, settings.levels
        self.lambda_max, self.manifold_weight = settings.lambda_max, settings.manifold_weight
        self.diffusion_fraction, self.time_power = settings.diffusion_fraction, settings.time_power
        self.spatial_norm, self.grid, self.diagonal = settings.spatial_norm, settings.grid, settings.manifold_diagonal

    def lam(self, step: int) -> float:
        """λ of the update with this index."""
        return linear_warmup(step, self.lambda_max, self.settings.warmup_steps) * self.schedule.value(step)

    def is_at_peak(self, step: int) -> bool:
        """Whether the warm-up is over and `stop_step` is not reached; always True if `lambda_max` is 0."""
        peak = linear_warmup(step, self.lambda_max, self.settings.warmup_steps)
        return (0.0 if self.schedule.is_stopped(step) else peak) >= self.lambda_max

    def targets(self, tokens: Tokens) -> Tokens:
        """The targets: a teacher's tokens, on its own grid, normalised spatially if `spatial_norm` is set."""
        if self.spatial_norm is None:
            return tokens
        x_BND = loss_math.normalise_spatially(tokens.x_BND, self.spatial_norm, tokens.mask_BN)
        return replace(tokens, x_BND=x_BND)

    def is_spike(self, terms: Terms, step: int) -> Tensor | None:
        """Whether the manifold loss is above the threshold; None during the warm-up, or without a manifold loss or a
        threshold."""
        if step < self.settings.warmup_steps or terms.manifold is None or self.settings.spike_threshold == inf:
            return None
        return (terms.manifold > self.settings.spike_threshold).detach()

    def manifold(
        self,
        student: UnitTokens,
        teacher: UnitTokens,
        gather: Gather,
        mask_BN: Tensor | None = None,
        detached: bool = False,
    ) -> Tensor:
        """The weighted sum of the manifold loss's levels, over tokens that count; `detached`: without a gradient."""
        value = teacher.get().new_zeros(())
        for level, weight in self.levels.items():
            student_BND, teacher_BND = student.get(detached), teacher.get()
            if level == "sample":
                ours_GD, theirs_GD = (gather(loss_math.pool_units(x, mask_BN)) for x in (student_BND, teacher_BND))
                value = value + weight * loss_math.manifold_loss_sample(ours_GD, theirs_GD, self.diagonal)
            else:
                within = loss_math.manifold_loss_of_units(student_BND, teacher_BND, mask_BN, self.diagonal)
                value = value + weight * within
        return value

    def other_terms(
        self, student_BND: Tensor, teacher_BND: Tensor, gather: Gather, mask_BN: Tensor | None
    ) -> dict[str, Tensor]:
        """Terms besides the token and the manifold loss, each [B], by name, before their weights."""
        return {}

    def attention_terms(self, output: Aligned, batch: Batch) -> dict[str, Tensor]:
        """Terms of blocks' attention, each [B], by name, before their weights."""
        return {}

    def combined(self, token_B: Tensor, other_B: dict[str, Tensor]) -> Tensor:
        """The weighted sum of a sample's terms [B]."""
        return token_B

    def __call__(
        self,
        diffusion_R: Tensor,
        output: Aligned,
        batch: Batch,
        step: int,
        gather: Gather,
        weight_B: Tensor | float = 1.0,
    ) -> Terms:
        """`weight_B` is g(t) of each sample."""
        if not batch.teachers:  # the alignment has ended; heads stay in the graph, which must be equal on all ranks
            unused = sum((tokens.x_BND.sum() for tokens in output.tokens.values()), diffusion_R.new_zeros(()))
            return Terms(diffusion_R.mean() + 0.0 * unused, {"diffusion": diffusion_R})
        targets = {name: self.targets(tokens) for name, tokens in batch.teachers.items()}
        shares, weight_sum = shares_of(targets, self.teachers), sum(self.taps.values())
        manifold = diffusion_R.new_zeros(())
        token_B = diffusion_R.new_zeros(len(next(iter(targets.values())).x_BND))
        by_teacher = {name: torch.zeros_like(token_B) for name in targets}
        other_B: dict[str, Tensor] = {}
        for tap, weight in self.taps.items():
            for name, own_target in targets.items():
                student = output.tokens[name_at(tap, name)]
                assert self.grid != TEACHER or student.grid == own_target.grid, (
                    f"{student.grid} tokens of the student, {own_target.grid} of {name}"
                )
                target = resize_tokens(own_target, student.grid)
                student_BND, teacher_BND = student.x_BND, target.x_BND
                mask_BN = loss_math.both_masks(student.mask_BN, target.mask_BN)
                assert student_BND.shape == teacher_BND.shape, f"{student_BND.shape} against {teacher_BND.shape}"
                units = UnitTokens(student_BND, mask_BN), UnitTokens(teacher_BND, mask_BN)
                # with weight 0 it is logged, without a gradient, as is the manifold loss
                compared_BND = units[0].get(detached=not self.token_weight)
                own_B = loss_math.token_loss_of_units(compared_BND, units[1].get(), mask_BN)
                share = weight / weight_sum * shares[name]
                by_teacher[name] = by_teacher[name] + weight / weight_sum * own_B.detach()
                token_B = token_B + share * own_B
                of_batch = self.manifold(*units, gather, mask_BN, detached=not self.manifold_weight)
                manifold = manifold + share * of_batch
                for term, value_B in self.other_terms(student_BND, teacher_BND, gather, mask_BN).items():
                    other_B[term] = other_B.get(term, torch.zeros_like(token_B)) + share * value_B
        clipped = manifold if self.settings.manifold_clip is None else manifold.clamp(max=self.settings.manifold_clip)
        attention_B = self.attention_terms(output, batch)
        weighted_B = weight_B * self.combined(token_B, other_B | attention_B)
        alignment = weighted_B.mean() + self.manifold_weight * clipped
        diffusion = diffusion_R.mean() if self.diffusion_fraction else diffusion_R.new_zeros(())
        total = loss_math.total_loss(diffusion, weighted_B.mean(), clipped, self.lam(step), self.manifold_weight)
        per_sample = {"diffusion": diffusion_R, "token": token_B}
        per_sample |= {f"token/{name}": own_B for name, own_B in by_teacher.items() if name}
        per_sample |= {f"{TERMS}/{name}": value_B for name, value_B in other_B.items()} | attention_B
        return Terms(total, per_sample, alignment, manifold, batch.rows_R, weighted_B)
