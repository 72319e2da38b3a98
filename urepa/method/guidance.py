"""Guidance over named parts of a condition: u + Σ_k s_k·(c_k − u), which with one part is classifier-free guidance.

In u all guided parts are withheld; in c_k the parts of name k are given and the other guided parts are withheld. With a
negative condition, its parts replace the withheld ones, so that u is the prediction under the negative prompt. Parts
that are not guided are given in every pass.

Shapes: B images, CHW latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from urepa.core.conditions import JOIN, Condition, check_names, covered_parts
from urepa.core.errors import UserError
from urepa.method.projected_guidance import ProjectedGuidance, Projection

# A number: one scale for all parts together. A mapping: one scale for the parts of each name
# (`conditions.covered_parts`).
Guidance = float | Mapping[str, float]


class GuidedPredictor(Protocol):
    """Maps x [B,C,H,W] and a time [] to the guided prediction [B,C,H,W], or the unguided one if `guided` is False."""

    def __call__(self, x: Tensor, t: Tensor, guided: bool = True) -> Tensor: ...


def scales_of(guidance: Guidance, parts: tuple[str, ...]) -> dict[str, float]:
    """The scale of each guided name. A number guides all parts together, as in classifier-free guidance.

    Raises UserError for a name that covers none of the parts, or a part that two names cover.
    """
    if not isinstance(guidance, Mapping):
        return {JOIN.join(parts): guidance}
    check_names(list(guidance), parts, "guidance")
    covered = [part for name in guidance for part in covered_parts(name, parts)]
    twice = [part for part in parts if covered.count(part) > 1]
    if twice:
        raise UserError(f"guidance: two names cover the part '{twice[0]}'; give each part one scale")
    return dict(guidance)


def guided_predictor(
    backbone: nn.Module,
    condition: Condition,
    scales: Mapping[str, float],
    dtype: torch.dtype,
    negative: Condition | None = None,
    projection: Projection | None = None,
) -> GuidedPredictor:
    """The backbone's prediction under guidance (Ho & Salimans 2022; Liu et al. 2022 for several parts), combined in
    `dtype`. All passes are one batch, [u; c_1; c_2; ...] in the order of `scales`. There is only one pass if nothing is
    guided, or if the only scale is 1. With a `projection` exactly one name is guided, by adaptive projected guidance
    (`urepa.method.projected_guidance`); the predictor is then for one run of a sampler, because it sums over its
    calls."""
    assert projection is None or len(scales) == 1, "projected guidance guides exactly one name"
    projected = None if projection is None else ProjectedGuidance(projection)
    plain = not scales or list(scales.values()) == [1]
    passes = condition if plain else guidance_passes(condition, tuple(scales), negative)

    def predict(x: Tensor, t: Tensor, guided: bool = True) -> Tensor:
        if plain or not guided:
            return backbone(x, t.expand(len(x)), condition).prediction_RCHW.to(dtype)
        many = torch.cat([x] * (len(scales) + 1))
        predictions = backbone(many, t.expand(len(many)), passes).prediction_RCHW.to(dtype)
        u, *given = predictions.chunk(len(scales) + 1)
        if projected is not None:
            return projected(u, given[0], next(iter(scales.values())))
        combined = u
        for scale, c in zip(scales.values(), given, strict=True):
            combined = combined + scale * (c - u)
        return combined

    return predict


def guidance_passes(condition: Condition, names: tuple[str, ...], negative: Condition | None = None) -> Condition:
    """The conditions of all passes in one batch: u, then c_k of each name. `negative`: the condition whose parts
    replace withheld ones, for the same images; None: they are withheld."""
    all_B = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
    covered = {name: covered_parts(name, condition.names) for name in names}
    base = condition.drop(dict.fromkeys(names, all_B)) if negative is None else negative
    guided = {part for parts in covered.values() for part in parts}

    def only(given: list[str]) -> Condition:
        away = guided.difference(given)
        return Condition({part: (base if part in away else condition)[part] for part in condition.names})

    return Condition.cat([only([]), *(only(covered[name]) for name in names)])
