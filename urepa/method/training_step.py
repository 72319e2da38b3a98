"""One training step as one page of mathematics.

Shapes: B local batch, R rows of it that have a diffusion term, G gathered (global) batch, N tokens, D widths, CHW
latent. L_total = L_diff + λ(step)·[L_token + w·L_manifold], the terms averaged over taps and teachers with their
weights. With `time_power` λ is λ(step)·g(t) for each sample, where g depends on its time and has mean 1. A loss without
a teacher has other alignment terms, of the backbone's own states (`urepa.method.self_alignment`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from urepa.core.class_token_protocols import CLASS_TOKEN
from urepa.core.conditions import Condition
from urepa.core.protocols import LossMath
from urepa.core.types import Attention, Batch, Tokens, no_rows
from urepa.method.alignment_grids import TEACHER, Grid, compared_on
from urepa.method.class_tokens import noised_class, zero_class
from urepa.method.gradient_layout import with_gradient_in_own_layout
from urepa.method.objectives.objective_math import ObjectiveMath, shape_of
from urepa.method.self_alignment import own_states
from urepa.method.step_schedules import time_power_at
from urepa.method.token_times import noised
from urepa.models.token_draws import hand_out

Gather = Callable[[Tensor], Tensor]  # [B,D] -> [G,D], with gradient
NO_GRIDS: Mapping[str, Grid] = {}


class SecondView(NamedTuple):
    """Inputs at which the averaged weights are evaluated: x_s [B,C,H,W] at the times s [B]."""

    x_s: Tensor
    s_B: Tensor


class GuidedView(NamedTuple):
    """The condition under which an earlier run's weights are evaluated at the model's own input, and the strength of
    guidance of their states."""

    condition: Condition
    strength: float


@dataclass(frozen=True)
class Aligned:
    """What the prepared model returns: a dataclass, so that accelerate leaves its tensors as they are."""

    prediction_RCHW: Tensor
    features: dict[str, Tokens]  # by tap
    tokens: dict[str, Tokens]  # by head
    averaged: dict[str, Tokens] = field(default_factory=dict)  # states of the averaged weights, without gradient
    attention: dict[str, Attention] = field(default_factory=dict)  # of blocks, by their taps
    frozen: dict[str, Tokens] = field(default_factory=dict)  # states of an earlier run's weights, without gradient
    known: dict[str, Tensor] = field(default_factory=dict)  # what a loss computed of batch and objective beforehand
    class_RE11: Tensor | None = None  # what is predicted of a class token


def _for_heads(feature: Tokens) -> Tokens:
    """A tap in fp32, whose gradient from the heads has the layout of the backbone's own."""
    return replace(feature, x_BND=with_gradient_in_own_layout(feature.x_BND)).float()


class AlignedModel(nn.Module):
    """A backbone and its heads: the only module that is prepared for DDP and autocast. There is one head per tap, under
    the tap's name; with several teachers one per tap and teacher, under TAP/TEACHER. `grid_policy` says on which grid
    a tap and a teacher are compared (`urepa.method.alignment_grids`). `own_taps` are states that a loss reads without a
    head, `averaged_taps` and `frozen_taps` those that it reads of the averaged weights and of an earlier run's, and
    `attended_taps` the taps of the blocks whose attention it reads."""

    def __init__(
        self,
        backbone: nn.Module,
        heads: dict[str, nn.Module],
        grid_policy: Any = TEACHER,
        own_taps: tuple[str, ...] = (),
        averaged_taps: tuple[str, ...] = (),
        attended_taps: tuple[str, ...] = (),
        frozen_taps: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.taps = tuple(dict.fromkeys((*(name.partition("/")[0] for name in heads), *own_taps)))
        self.averaged_taps, self.attended_taps, self.frozen_taps = averaged_taps, attended_taps, frozen_taps
        # The averages of the trained weights by their names in this module; empty: those that the module has. They are
        # kept outside of its parameters and buffers, so that DDP, checkpoints and exports do not see them.
        self.averages: Mapping[str, Tensor] = {}
        self.earlier: Mapping[str, Tensor] = {}  # an earlier run's, in the same way
        self.grid_policy = grid_policy
        self.attention: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        rows_R: Tensor | None = None,
        grids: Mapping[str, Grid] = NO_GRIDS,
        second: SecondView | None = None,
        guided: GuidedView | None = None,
        class_BE11: Tensor | None = None,
    ) -> Aligned:
        """
        Args:
            second: where the averaged weights are evaluated too, under the same condition; None: nowhere.
            guided: how the earlier run's weights are evaluated too, at the same input; None: not.
            grids: rows and columns of each teacher's tokens in this batch, by its name. A teacher without tokens in the
                batch is absent; its heads are called with the tap's own grid, so that they stay in the graph.
            class_BE11: the noised class token, for a backbone that denoises one.
        """
        averaged = {} if second is None else self.averaged_states(second, condition)
        frozen = {} if guided is None else self.frozen_states(x_t, t_B, guided)
        more: dict[str, Any] = {"attention": self.attended_taps} if self.attended_taps else {}
        more |= {} if class_BE11 is None else {"class_BE11": class_BE11}
        with self.attention():
            denoised = self.backbone(x_t, t_B, condition, taps=self.taps, rows_R=rows_R, **more)
        with torch.autocast(x_t.device.type, enabled=False):  # fp32: heads are small, and losses use them
            tapped = {tap: _for_heads(denoised.features[tap]) for tap in self.taps}
            tokens = {}
            for name, head in self.heads.items():
                tap, _, teacher = name.partition("/")
                grid = self.compared_on(tapped[tap].grid, grids[teacher]) if teacher in grids else tapped[tap].grid
                tokens[name] = head(tapped[tap], t_B, grid)
                assert tokens[name].grid == grid, f"the head {name} gives {tokens[name].grid} tokens, not {grid}"
        own = (denoised.features, tokens, averaged, denoised.attention, frozen)
        return Aligned(denoised.prediction_RCHW, *own, class_RE11=denoised.class_RE11)

    def averaged_states(self, second: SecondView, condition: Condition) -> dict[str, Tokens]:
        """The states at `averaged_taps` of the backbone under the averaged weights."""
        return self.states_at(self.averages, self.averaged_taps, *second, condition)

    def frozen_states(self, x_t: Tensor, t_B: Tensor, guided: GuidedView) -> dict[str, Tokens]:
        """The states at `frozen_taps` of the backbone under the earlier run's weights: u + s·(c − u), where c are those
        under the condition, u those without one and s is the strength, or c alone if it is 1."""
        under = self.states_at(self.earlier, self.frozen_taps, x_t, t_B, guided.condition)
        if guided.strength == 1:
            return under
        without = self.states_at(self.earlier, self.frozen_taps, x_t, t_B, guided.condition.null())
        pairs = {tap: (c, without[tap].x_BND) for tap, c in under.items()}
        return {tap: replace(c, x_BND=u + guided.strength * (c.x_BND - u)) for tap, (c, u) in pairs.items()}

    @torch.no_grad()
    def states_at(
        self, other: Mapping[str, Tensor], taps: tuple[str, ...], x_t: Tensor, t_B: Tensor, condition: Condition
    ) -> dict[str, Tokens]:
        """The states of the backbone under other weights, by their names in this module, in eval mode. The backbone's
        own weights and mode are as before afterwards."""
        # detached, so that autocast cannot keep casts of them for the student that were made without gradients
        weights = {name: own.detach() for name, own in self.backbone.named_parameters()}
        weights |= {
            name.removeprefix("backbone."): weight for name, weight in other.items() if name.startswith("backbone.")
        }
        modes = {module: module.training for module in self.backbone.modules()}
        self.backbone.eval()
        try:
            with self.attention():
                denoised = torch.func.functional_call(
                    self.backbone,
                    weights,
                    (x_t, t_B, condition, taps, no_rows(x_t.device)),
                )
        finally:
            for module, was_training in modes.items():
                module.training = was_training
        return {tap: denoised.features[tap].float() for tap in taps}

    def compared_on(self, tap: Grid, teacher: Grid) -> Grid:
        """The grid to which a head resizes a tap's tokens, given the tap's grid and the teacher's."""
        return compared_on(self.grid_policy, tap, teacher)

    @torch.no_grad()
    def check_shapes(
        self,
        shapes: Iterable[tuple[tuple[int, int, int], Mapping[str, Grid]]],
        t_B: Tensor,
        condition: Condition,
    ) -> list[dict[str, Grid]]:
        """The grids of the heads' tokens, by head, for each of the shapes. It is called before training: a head that
        cannot resize a tap to its grid raises its UserError here and not at the step that needs it.

        Args:
            shapes: the shapes [C,H,W] of x_t in all batches, each with the teachers' grids at this shape.
            t_B, condition: those of one sample, on the model's device.
        """
        was_training = self.training
        self.eval()
        found = []
        for shape, grids in shapes:
            x_t, more = torch.zeros(1, *shape, device=t_B.device), zero_class(self.backbone, 1, t_B.device)
            output = self(x_t, t_B, condition, no_rows(t_B.device), grids, **more)
            found.append({name: tokens.grid for name, tokens in output.tokens.items()})
        self.train(was_training)
        return found


@dataclass(frozen=True)
class Terms:
    """A step's terms. `per_sample` are [B], the diffusion term [R] where only the rows `rows_R` have one;
    `alignment` is L_token + w·L_manifold, before λ(step); `weighted_B` is its per-sample part, g(t)·L_token. `manifold`
    is the term of the whole batch, which a loss without a manifold term has under another name, `batch_term`.
    """

    total: Tensor
    per_sample: dict[str, Tensor]
    alignment: Tensor | None = None
    manifold: Tensor | None = None
    rows_R: Tensor | None = None
    weighted_B: Tensor | None = None
    batch_term: str = "manifold"

    def finite_B(self) -> Tensor:
        """Which samples have only finite terms."""
        finite = {name: value.isfinite() for name, value in self.per_sample.items()}
        if self.rows_R is not None:
            everywhere_B = torch.ones_like(next(f for name, f in finite.items() if name != "diffusion"))
            finite["diffusion"] = everywhere_B.index_copy(0, self.rows_R, finite["diffusion"])
        return torch.stack(list(finite.values())).all(0)

    def means(self) -> dict[str, Tensor]:
        """The logged scalars, on the device. A term that no sample has is absent."""
        means = {name: value.mean() for name, value in self.per_sample.items() if len(value)}
        scalars = {"total": self.total} | means
        if self.manifold is not None:
            scalars[self.batch_term] = self.manifold
        if "token" in scalars:
            scalars["cosine"] = 1.0 - scalars["token"]
        return {name: value.detach() for name, value in scalars.items()}


def shares_of(names: Iterable[str], weights: dict[str, float]) -> dict[str, float]:
    """Each teacher's share in the mean over teachers; a teacher that `weights` does not list has weight 1."""
    weight_of = {name: weights.get(name, 1.0) for name in names}
    return {name: weight / sum(weight_of.values()) for name, weight in weight_of.items()}


def step_terms(
    model: nn.Module,
    objective: ObjectiveMath,
    loss: LossMath,
    batch: Batch,
    step: int,
    gather: Gather,
) -> tuple[Terms, Aligned]:
    """The losses of one micro-batch: corrupt, predict, compare. If the batch has `rows_R`, only these rows have a
    diffusion term. It is an unbiased estimate of the whole batch's, because all rows are equally likely."""
    x_t, times = noised(model, objective, loss, batch)
    own, asked = own_states(loss), cast(Any, loss)
    views: dict[str, Any] = {}
    if batch.is_aligned and own.averaged:
        s_B = asked.second_times(batch, objective)
        views["second"] = SecondView(objective.corrupt(batch.x0, batch.noise, s_B), s_B)
    if batch.is_aligned and own.frozen:
        views["guided"] = GuidedView(batch.condition if batch.whole is None else batch.whole, asked.guidance)
    if (token := noised_class(loss, objective, batch)) is not None:
        views["class_BE11"] = token.x_t_BE11
    hand_out(model, batch.draws)
    output = model(x_t, times, batch.condition, batch.rows_R, batch.grids, **views)
    if batch.is_aligned and hasattr(loss, "known"):
        output = replace(output, known=asked.known(batch, objective))
    if token is not None:
        class_B = objective.diffusion_terms(output.class_RE11, token.target_BE11, batch.t_B)
        output = replace(output, known=output.known | {CLASS_TOKEN: class_B})
    target = objective.target(batch.x0, batch.noise, batch.t_B)
    diffusion_R = objective.diffusion_terms(output.prediction_RCHW, target, batch.t_B, batch.rows_R)
    weight_B = objective.towards_data(batch.t_B, time_power_at(loss, step), shape_of(batch.x0))
    return loss(diffusion_R, output, batch, step, gather, weight_B), output


def tap_gradients(terms: Terms, output: Aligned) -> dict[str, Tensor]:
    """The gradients that λ balances: at each tap, Σg² of the diffusion term and of the alignment term (before λ), and
    their inner product, as a [3] tensor. These are sums, so that ranks can add them. A tap without trainable weights
    before it has no gradient and is left out, and so is one that the alignment reads as its target only. Empty if the
    batch has no diffusion term or no alignment term."""
    sums: dict[str, Tensor] = {}
    if terms.alignment is None or not len(terms.per_sample["diffusion"]):
        return sums
    diffusion = terms.per_sample["diffusion"].mean()
    for tap, feature in output.features.items():
        if not feature.x_BND.requires_grad:
            continue
        by_term = [
            torch.autograd.grad(term, feature.x_BND, retain_graph=True, allow_unused=True)[0]
            for term in (diffusion, terms.alignment)
        ]
        if any(gradient is None for gradient in by_term):
            continue
        d, a = (gradient.float() for gradient in by_term)
        sums[tap] = torch.stack([d.pow(2).sum(), a.pow(2).sum(), (d * a).sum()])
    return sums
