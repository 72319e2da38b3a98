"""One training step as one page of mathematics.

Shapes: B local batch, R rows of it that have a diffusion term, G gathered (global) batch, N tokens, D widths, CHW
latent. L_total = L_diff + λ(step)·[L_token + w·L_manifold], the terms averaged over taps and teachers with their
weights. With `time_power` λ is λ(step)·g(t) for each sample, where g depends on its time and has mean 1.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.loss_settings import check_layout, check_loss
from urepa.core.types import Batch, Condition, Tokens
from urepa.method import losses
from urepa.method.objectives.objective_math import ObjectiveMath
from urepa.method.step_schedules import linear_warmup
from urepa.models.teachers.several_teachers import name_at

Gather = Callable[[Tensor], Tensor]  # [B,D] -> [G,D], with gradient


@dataclass(frozen=True)
class Aligned:
    """What the prepared model returns: a dataclass, so that accelerate leaves its tensors as they are."""

    prediction_RCHW: Tensor
    features: dict[str, Tokens]  # by tap
    tokens: dict[str, Tokens]  # by head


class AlignedModel(nn.Module):
    """A backbone and its heads: the only module that is prepared for DDP and autocast. There is one head per tap, under
    the tap's name; with several teachers one per tap and teacher, under TAP/TEACHER."""

    def __init__(self, backbone: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.taps = tuple(dict.fromkeys(name.partition("/")[0] for name in heads))
        self.attention: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition, rows_R: Tensor | None = None) -> Aligned:
        with self.attention():
            denoised = self.backbone(x_t, t_B, condition, taps=self.taps, rows_R=rows_R)
        with torch.autocast(x_t.device.type, enabled=False):  # heads are small, and feed the losses: fp32
            tapped = {tap: denoised.features[tap].float() for tap in self.taps}
            tokens = {name: head(tapped[name.partition("/")[0]], t_B) for name, head in self.heads.items()}
        return Aligned(denoised.prediction_RCHW, denoised.features, tokens)


@dataclass(frozen=True)
class Terms:
    """A step's terms. `per_sample` are [B], the diffusion term [R] where only the rows `rows_R` have one;
    `alignment` is L_token + w·L_manifold, before λ(step), and `weighted_B` what of it is a sample's own: g(t)·L_token.
    """

    total: Tensor
    per_sample: dict[str, Tensor]
    alignment: Tensor | None = None
    manifold: Tensor | None = None
    rows_R: Tensor | None = None
    weighted_B: Tensor | None = None

    def finite_B(self) -> Tensor:
        """Which samples have only finite terms."""
        finite = {name: value.isfinite() for name, value in self.per_sample.items()}
        if self.rows_R is not None:
            everywhere_B = torch.ones_like(finite["token"])
            finite["diffusion"] = everywhere_B.index_copy(0, self.rows_R, finite["diffusion"])
        return torch.stack(list(finite.values())).all(0)

    def means(self) -> dict[str, Tensor]:
        """The logged scalars, on the device. A term that no sample had is not there."""
        means = {name: value.mean() for name, value in self.per_sample.items() if len(value)}
        scalars = {"total": self.total} | means
        if self.manifold is not None:
            scalars["manifold"] = self.manifold
        if "token" in scalars:
            scalars["cosine"] = 1.0 - scalars["token"]
        return {name: value.detach() for name, value in scalars.items()}


class DiffusionOnly:
    """loss=none: L_diff alone, with neither teacher nor head."""

    taps: dict[str, float] = {}
    lambda_max = 0.0
    diffusion_fraction = 1.0
    aligned_steps = 0.0
    time_power = 0.0

    def lam(self, step: int) -> float:
        return 0.0

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """Nothing to check: samples do not meet."""

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
        return Terms(diffusion_R.mean(), {"diffusion": diffusion_R})


@dataclass
class AlignmentLoss:
    """loss=urepa. Fields are described in `urepa.config`; the formulas are in `urepa.method.losses`."""

    lambda_max: float
    warmup_steps: int
    manifold_weight: float
    level: str
    taps: dict[str, float]
    spike_threshold: float
    manifold_clip: float | None = None
    diffusion_fraction: float = 1.0
    spatial_norm: float | None = None
    stop_step: int | None = None
    time_power: float = 0.0
    teachers: dict[str, float] = field(default_factory=dict)
    levels: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        check_loss(
            self.lambda_max,
            self.manifold_weight,
            self.taps,
            self.diffusion_fraction,
            self.stop_step,
            self.time_power,
        )
        self.levels = losses.MANIFOLD_LEVELS[self.level]

    def lam(self, step: int) -> float:
        """λ of the update with this index."""
        if step >= self.aligned_steps:
            return 0.0
        return linear_warmup(step, self.lambda_max, self.warmup_steps)

    @property
    def aligned_steps(self) -> float:
        """How many updates the teacher is asked for (HASTE, Wang et al. 2025; SYSTEMS.md C)."""
        return math.inf if self.stop_step is None else self.stop_step

    def targets(self, teacher_BND: Tensor) -> Tensor:
        """What the student's tokens are compared with."""
        if self.spatial_norm is None:
            return teacher_BND
        return losses.normalise_spatially(teacher_BND, self.spatial_norm)

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """`urepa.core.loss_settings`."""
        check_layout(self.level, smallest_group, accumulation)

    def is_spike(self, terms: Terms, step: int) -> Tensor | None:
        """After the warm-up: is the manifold loss above the threshold (spec 000 §10.3)?"""
        if step < self.warmup_steps or terms.manifold is None:
            return None
        return (terms.manifold > self.spike_threshold).detach()

    def manifold(self, student_BND: Tensor, teacher_BND: Tensor, gather: Gather) -> Tensor:
        """The weighted levels of the manifold loss."""
        value = student_BND.new_zeros(())
        for level, weight in self.levels.items():
            if level == "sample":
                pooled = (gather(losses.pool_tokens(x)) for x in (student_BND, teacher_BND))
                value = value + weight * losses.manifold_loss_sample(*pooled)
            else:
                value = value + weight * losses.manifold_loss_token(student_BND, teacher_BND)
        return value

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
        if not batch.teachers:  # no more; heads stay in the graph, as every rank must have the same one
            unused = sum((tokens.x_BND.sum() for tokens in output.tokens.values()), diffusion_R.new_zeros(()))
            return Terms(diffusion_R.mean() + 0.0 * unused, {"diffusion": diffusion_R})
        targets = {name: self.targets(tokens_BND) for name, tokens_BND in batch.teachers.items()}
        shares, weight_sum = shares_of(targets, self.teachers), sum(self.taps.values())
        manifold = diffusion_R.new_zeros(())
        token_B = diffusion_R.new_zeros(len(next(iter(targets.values()))))
        by_teacher = {name: torch.zeros_like(token_B) for name in targets}
        for tap, weight in self.taps.items():
            for name, teacher_BND in targets.items():
                student_BND = output.tokens[name_at(tap, name)].x_BND
                own_B, share = losses.token_loss(student_BND, teacher_BND), weight / weight_sum * shares[name]
                by_teacher[name] = by_teacher[name] + weight / weight_sum * own_B.detach()
                token_B = token_B + share * own_B
                # what has no weight is logged, and asks for no gradient
                trained_BND = student_BND if self.manifold_weight else student_BND.detach()
                manifold = manifold + share * self.manifold(trained_BND, teacher_BND, gather)
        clipped = manifold if self.manifold_clip is None else manifold.clamp(max=self.manifold_clip)
        weighted_B = weight_B * token_B
        alignment = weighted_B.mean() + self.manifold_weight * clipped
        diffusion = diffusion_R.mean() if self.diffusion_fraction else diffusion_R.new_zeros(())
        total = losses.total_loss(diffusion, weighted_B.mean(), clipped, self.lam(step), self.manifold_weight)
        per_sample = {"diffusion": diffusion_R, "token": token_B}
        per_sample |= {f"token/{name}": own_B for name, own_B in by_teacher.items() if name}
        return Terms(total, per_sample, alignment, manifold, batch.rows_R, weighted_B)


def shares_of(names: Iterable[str], weights: dict[str, float]) -> dict[str, float]:
    """Each teacher's share in the mean over them; one that has no weight has 1."""
    weight_of = {name: weights.get(name, 1.0) for name in names}
    return {name: weight / sum(weight_of.values()) for name, weight in weight_of.items()}


def step_terms(
    model: nn.Module,
    objective: ObjectiveMath,
    loss: DiffusionOnly | AlignmentLoss,
    batch: Batch,
    step: int,
    gather: Gather,
) -> tuple[Terms, Aligned]:
    """The losses of one micro-batch: corrupt, predict, compare. Where the batch names rows, only they have a
    diffusion term, an unbiased estimate of the batch's: each row is as likely as any other."""
    x_t = objective.corrupt(batch.x0, batch.noise, batch.t_B)
    output = model(x_t, batch.t_B, batch.condition, batch.rows_R)
    target = objective.target(batch.x0, batch.noise, batch.t_B)
    target_RCHW = target if batch.rows_R is None else target[batch.rows_R]
    diffusion_R = losses.diffusion_loss(output.prediction_RCHW, target_RCHW)
    weight_B = objective.towards_data(batch.t_B, loss.time_power)
    return loss(diffusion_R, output, batch, step, gather, weight_B), output


def tap_gradients(terms: Terms, output: Aligned) -> dict[str, Tensor]:
    """Why λ matters: at each tap, Σg² of the diffusion term and of the alignment term (before λ), and their
    inner product, as a [3] tensor. Sums, so that ranks can add them. A tap that nothing trainable precedes
    has no gradient and is left out, and without a diffusion term there is nothing to compare."""
    sums: dict[str, Tensor] = {}
    if terms.alignment is None or not len(terms.per_sample["diffusion"]):
        return sums
    diffusion = terms.per_sample["diffusion"].mean()
    for tap, feature in output.features.items():
        if not feature.x_BND.requires_grad:
            continue
        by_term = [
            torch.autograd.grad(term, feature.x_BND, retain_graph=True)[0].float()
            for term in (diffusion, terms.alignment)
        ]
        d, a = by_term
        sums[tap] = torch.stack([d.pow(2).sum(), a.pow(2).sum(), (d * a).sum()])
    return sums
