"""Guidance over named parts of a condition: u + Σ_k s_k·(c_k − u), which with one part is classifier-free guidance.

u has all guided parts withheld, c_k has those of name k given and the other guided parts withheld. With a negative
condition its guided parts stand wherever these are withheld, so that u is the negative prompt's prediction. Parts that
are not guided are the condition's in every pass.

Shapes: B images, CHW latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from urepa.core.conditions import JOIN, Condition, check_names, covered_parts
from urepa.core.errors import UserError

# A number is the scale of all parts together; by name, each name's parts have their own (`conditions.covered_parts`).
Guidance = float | Mapping[str, float]


class GuidedPredictor(Protocol):
    """x [B,C,H,W] and a time [] to the guided prediction [B,C,H,W]; to the plain one where `guided` is False."""

    def __call__(self, x: Tensor, t: Tensor, guided: bool = True) -> Tensor: ...


def scales_of(guidance: Guidance, parts: tuple[str, ...]) -> dict[str, float]:
    """The scale of each guided name. A number guides all parts together, as a model of classes is guided.

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
) -> GuidedPredictor:
    """The backbone's prediction under guidance (Ho & Salimans 2022; Liu et al. 2022 for several parts), combined in
    `dtype`. All passes are one batch, [u; c_1; c_2; ...] in the order of `scales`. One pass is enough where nothing is
    guided, or one name by a scale of 1."""
    plain = not scales or list(scales.values()) == [1]
    passes = condition if plain else guidance_passes(condition, tuple(scales), negative)

    def predict(x: Tensor, t: Tensor, guided: bool = True) -> Tensor:
        if plain or not guided:
            return backbone(x, t.expand(len(x)), condition).prediction_RCHW.to(dtype)
        many = torch.cat([x] * (len(scales) + 1))
        predictions = backbone(many, t.expand(len(many)), passes).prediction_RCHW.to(dtype)
        u, *given = predictions.chunk(len(scales) + 1)
        combined = u
        for scale, c in zip(scales.values(), given, strict=True):
            combined = combined + scale * (c - u)
        return combined

    return predict


def guidance_passes(condition: Condition, names: tuple[str, ...], negative: Condition | None = None) -> Condition:
    """The conditions of all passes in one batch: u, then c_k of each name. `negative`: what u has of the guided parts,
    for each of the same images; None: they are withheld."""
    all_B = torch.ones(len(condition), dtype=torch.bool, device=condition.device)
    covered = {name: covered_parts(name, condition.names) for name in names}
    base = condition.drop(dict.fromkeys(names, all_B)) if negative is None else negative
    guided = {part for parts in covered.values() for part in parts}

    def only(given: list[str]) -> Condition:
        away = guided.difference(given)
        return Condition({part: (base if part in away else condition)[part] for part in condition.names})

    return Condition.cat([only([]), *(only(covered[name]) for name in names)])
