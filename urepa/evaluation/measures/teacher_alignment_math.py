"""Measures of how similar a run's features are to those of its teacher, over t.

Shapes: B samples of a chunk, N tokens, D widths.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from urepa.core.files import write_whole
from urepa.data.lists.samples import Sample
from urepa.evaluation.constant_tokens import mean_on
from urepa.evaluation.context import Context
from urepa.evaluation.features import (
    CHUNK,
    Chunk,
    Pool,
    chunks,
    held_out_samples,
    mean_token,
    pool_chunks,
    require_head,
    subset,
    tap_pool,
    teacher_tokens,
    time_label,
)
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.measures.teacher_alignment import OF_A_TEACHER, PICTURE, TeacherAlignment
from urepa.evaluation.plots import curves_png
from urepa.evaluation.similarity import cknna, linear_cka, neighbour_recall, similarity_mae
from urepa.method.alignment_grids import TEACHER, Grid
from urepa.method.losses import loss_math
from urepa.models.layers import resize_tokens
from urepa.models.teachers.several_teachers import name_at

TITLES = {
    "token_cosine": "token cosine with the teacher",
    "token_cosine_above_constant": "token cosine above the best constant",
    "similarity_mae": "MAE of sample similarities",
    "neighbour_recall": "nearest-neighbour recall",
    "cka": "linear CKA of the tap",
    "cknna": "CKNNA of the tap",
}


def align(asked: TeacherAlignment, context: Context) -> dict[str, float]:
    """The values of every aligned tap against every teacher."""
    asked.check_images(cache_counts(context.cache))
    samples = subset(held_out_samples(context), asked.images)
    metrics: dict[str, float] = {}
    for name in context.cache.teacher_names or (context.teacher,):
        metrics |= _teacher_values(asked, replace(context, teacher=name), samples)
    return metrics


def _teacher_values(asked: TeacherAlignment, context: Context, samples: list[Sample]) -> dict[str, float]:
    teacher_tokens(context, samples[:1])  # a run without a teacher has no heads either: this says why
    require_head(context, asked.tap)
    taps = list(context.model.taps)
    grid = sorted({asked.timestep, *asked.timesteps})
    grids = _compared_grids(context, samples[:1], taps, asked.timestep)
    on_grid = {on: _teacher_vectors(context, samples, on) for on in dict.fromkeys(grids.values())}
    teacher = {tap: on_grid[grids[tap]] for tap in taps}
    by_t = {t: _values_at(context, samples, teacher, taps, t, asked.neighbours) for t in grid}
    metrics: dict[str, float] = {}
    for tap in taps:
        ending, label = "" if tap == asked.tap else f"/{tap}", name_at(tap, context.teacher)
        here = by_t[asked.timestep][tap].items()
        metrics |= {name_at(f"final/{name}{ending}", context.teacher): value for name, value in here}
        if len(grid) > 1:
            for t in grid:
                at = f"{label}/{time_label(context.objective, t)}"
                metrics |= {f"final/{name}_by_t/{at}": v for name, v in by_t[t][tap].items()}
    for floor, build in context.floors.items():
        own = pool_chunks(context, samples, (asked.tap,), asked.timestep, {"tap": tap_pool(asked.tap)}, build())
        found = _tap_values(torch.from_numpy(own["tap"]), teacher[asked.tap]["mean"], asked.neighbours)
        metrics |= {name_at(f"final/{floor}_{name}", context.teacher): v for name, v in found.items()}
    picture = OF_A_TEACHER if context.teacher else PICTURE
    write_whole(context.picture_file(picture, context.teacher), _figure(by_t))
    return metrics


def _compared_grids(context: Context, samples: list[Sample], taps: list[str], t: float) -> dict[str, Grid]:
    """The grid on which each tap is compared with the teacher, as its head makes tokens of a sample."""
    if context.model.grid_policy == TEACHER:
        return dict.fromkeys(taps, context.cache.grids[context.teacher])
    (chunk,) = chunks(context, samples, taps, t)
    return {tap: chunk.heads[tap].grid for tap in taps}


def _values_at(
    context: Context,
    samples: list[Sample],
    teacher_by_tap: dict[str, dict[str, Tensor]],
    taps: list[str],
    t: float,
    neighbours: int,
) -> dict[str, dict[str, float]]:
    """All values at one timestep, by tap, in one pass."""
    pools: dict[str, Pool] = {}
    for tap in taps:
        pools[f"{tap} tap"] = tap_pool(tap)
        pools[f"{tap} head"] = partial(_unit_mean, tap)
        pools[f"{tap} cosine"] = partial(_cosine, context, tap)
    kept = {name: torch.from_numpy(v) for name, v in pool_chunks(context, samples, taps, t, pools).items()}
    values: dict[str, dict[str, float]] = {}
    for tap in taps:
        cosine, head, teacher = kept[f"{tap} cosine"].double().mean().item(), kept[f"{tap} head"], teacher_by_tap[tap]
        values[tap] = {"token_cosine": cosine}
        if "constant_cosine" in teacher:
            constant = teacher["constant_cosine"].double().mean().item()
            values[tap]["token_cosine_above_constant"] = cosine - constant
        values[tap] |= {
            "similarity_mae": similarity_mae(head, teacher["pooled"]),
            "neighbour_recall": neighbour_recall(head, teacher["pooled"], neighbours),
        } | _tap_values(kept[f"{tap} tap"], teacher["mean"], neighbours)
    return values


def _tap_values(tap_ND: Tensor, teacher_NE: Tensor, neighbours: int) -> dict[str, float]:
    return {"cka": linear_cka(tap_ND, teacher_NE), "cknna": cknna(tap_ND, teacher_NE, neighbours)}


def _teacher_vectors(context: Context, samples: list[Sample], grid: Grid) -> dict[str, Tensor]:
    """The teacher's mean tokens; of the loss's targets on a grid the pooled unit vectors and, where those are its
    tokens, the best constant token's cosine with them: a row a sample."""
    is_mean_known = context.loss.spatial_norm is None  # else the mean token is another one
    constant_D = mean_on(context.cache, context.teacher, [grid]) if is_mean_known else None
    kept: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, len(samples), CHUNK):
        tokens = teacher_tokens(context, samples[start : start + CHUNK])
        target = resize_tokens(context.loss.targets(tokens), grid)
        kept["mean"].append(mean_token(tokens))
        kept["pooled"].append(loss_math.pool_tokens(target.x_BND, target.mask_BN))
        if constant_D is not None:
            constant_BND = constant_D.expand_as(target.x_BND)
            kept["constant_cosine"].append(1 - loss_math.token_loss(constant_BND, target.x_BND, target.mask_BN))
    return {name: torch.cat(rows) for name, rows in kept.items()}


def _unit_mean(tap: str, chunk: Chunk) -> Tensor:
    """The pooled unit vectors of a head's tokens."""
    tokens = chunk.heads[tap]
    return loss_math.pool_tokens(tokens.x_BND, tokens.mask_BN)


def _cosine(context: Context, tap: str, chunk: Chunk) -> Tensor:
    """The mean cosine of each sample's tokens with the loss's targets [B]."""
    tokens = chunk.heads[tap]
    own_target = context.loss.targets(teacher_tokens(context, chunk.samples))
    target = resize_tokens(own_target, tokens.grid).to(tokens.x_BND.device)
    mask_BN = loss_math.both_masks(tokens.mask_BN, target.mask_BN)
    return 1 - loss_math.token_loss(tokens.x_BND, target.x_BND, mask_BN)


def _figure(by_t: dict[float, dict[str, dict[str, float]]]) -> bytes:
    """A figure of each value over t, with one line per tap."""
    first = next(iter(by_t.values()))
    taps = list(first)
    return curves_png(
        {
            title: {tap: [(t, found[tap][name]) for t, found in by_t.items()] for tap in taps}
            for name, title in TITLES.items()
            if name in first[taps[0]]
        },
        xlabel="timestep t",
    )
