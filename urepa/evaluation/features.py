"""Features of images in a run's model, chunk by chunk: taps, the heads' tokens and the teacher's, under the null
condition. The class is never given, because it would leak the label.

Shapes: B samples of a chunk, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.core import progress, random_draws
from urepa.core.errors import UserError
from urepa.core.types import Tokens, no_rows
from urepa.data.lists.samples import Sample, Samples, fixed_subset
from urepa.evaluation.context import Context
from urepa.method.objectives.objective_math import ObjectiveMath
from urepa.method.training_step import AlignedModel

CHUNK = 128


@dataclass(frozen=True)
class Chunk:
    """Some samples and their features by tap, in fp32, on the model's device. `heads` has the taps that have a head for
    the context's teacher; its tokens are in the teacher's space and have unit length."""

    samples: list[Sample]
    taps: dict[str, Tokens]
    heads: dict[str, Tokens]


Pool = Callable[[Chunk], Tensor]  # computes what is kept of a chunk: [B,...]


@torch.no_grad()
def chunks(
    context: Context,
    samples: Sequence[Sample],
    taps: Sequence[str],
    timestep: float,
    model: AlignedModel | None = None,
) -> Iterator[Chunk]:
    """Yields the samples in order, `CHUNK` at a time. Memory use does not depend on their number.

    Args:
        timestep: the time of the objective at which x0 is noised. Noise is addressed by the sample's id, so it is the
            same in every run and at every timestep.
        model: replaces the context's model, for example by that of `Context.untrained`.

    Raises UserError if the backbone has no such tap or the objective has no such timestep.
    """
    model = context.model if model is None else model
    backbone: Any = model.backbone
    for tap in taps:
        backbone.tap_width(tap)
    time = context.objective.times_of(timestep)
    if not context.objective.has_time(time):
        raise UserError(f"{timestep} is not a time of this run's objective, which has {context.objective.times}")
    desc = f"features of {len(samples):,} images at t={timestep}"
    with progress.bar(total=len(samples), desc=desc, unit="image", leave=False) as bar:
        for start in range(0, len(samples), CHUNK):
            part = list(samples[start : start + CHUNK])
            yield _chunk(context, part, taps, time, model)
            bar.update(len(part))


def _chunk(context: Context, part: list[Sample], taps: Sequence[str], time: Tensor, model: AlignedModel) -> Chunk:
    """The features of some samples at a time [] of the objective."""
    x0 = context.cache.x0(part)
    rngs = [random_draws.generator(random_draws.digest64("probe", s.sample_id), "noise") for s in part]
    noise = torch.stack([random_draws.normal(tuple(x0.shape[1:]), rng) for rng in rngs])
    t_B = time.repeat(len(part))
    x_t, t_B = (x.to(context.device) for x in (context.objective.corrupt(x0, noise, t_B), t_B))
    null = context.cache.conditions.null(len(part)).to(context.device)
    denoised = model.backbone(x_t, t_B, null, tuple(taps), no_rows(context.device))
    tapped = {tap: denoised.features[tap].float() for tap in taps}
    with torch.autocast(context.device.type, enabled=False):  # heads compute in fp32, as in training
        names = {tap: name for tap in taps if (name := context.head_at(tap)) is not None}
        of_teacher = context.cache.grids.get(context.teacher, (0, 0))  # (0, 0): there is no head
        grids = {tap: model.compared_on(tapped[tap].grid, of_teacher) for tap in names}
        heads = {tap: model.heads[name](tapped[tap], t_B, grids[tap]) for tap, name in names.items()}
    return Chunk(part, tapped, heads)


def pool_chunks(
    context: Context,
    samples: Sequence[Sample],
    taps: Sequence[str],
    timestep: float,
    pools: dict[str, Pool],
    model: AlignedModel | None = None,
) -> dict[str, np.ndarray]:
    """Applies every pool to every chunk in one pass. Returns by name an array with one row per sample. The other
    arguments are those of `chunks`. Memory holds one chunk at a time. Pools always compute in fp32."""
    kept: dict[str, np.ndarray] = {}
    done = 0
    for chunk in chunks(context, samples, taps, timestep, model):
        for name, pool in pools.items():
            with torch.autocast(context.device.type, enabled=False):
                rows = pool(chunk).cpu().numpy()
            if name not in kept:
                kept[name] = np.empty((len(samples), *rows.shape[1:]), rows.dtype)
            kept[name][done : done + len(rows)] = rows
        done += len(chunk.samples)
    return kept


def time_label(objective: ObjectiveMath, t: float) -> str:
    """A time as part of a metric's name: 0500 for a whole timestep, 0.280 or 1.000 for a flow's time."""
    return f"{t:.3f}" if objective.times_of(t).is_floating_point() else f"{t:04d}"


def mean_token(tokens: Tokens) -> Tensor:
    """The mean token of each sample [B,D]."""
    if tokens.mask_BN is None:
        return tokens.x_BND.float().mean(1)
    counted_BND = tokens.x_BND.float().masked_fill(~tokens.mask_BN[..., None], 0)
    return counted_BND.sum(1) / tokens.mask_BN.sum(1, keepdim=True)


def tap_pool(tap: str) -> Pool:
    """A pool that takes the mean of a tap's tokens."""
    return lambda chunk: mean_token(chunk.taps[tap])


def teacher_tokens(context: Context, samples: Sequence[Sample]) -> Tokens:
    """The teacher's tokens of a chunk, fp32, on the CPU. Raises UserError if the run has no teacher tokens."""
    tokens_BND = context.cache.teacher_BND(list(samples), context.teacher)
    if tokens_BND is None:
        why = "loss=none" if context.own_cache is None else "those of another run's data are not read"
        raise UserError(f"there are no teacher tokens to compare with ({why}): leave this evaluation out")
    return Tokens(tokens_BND.float().cpu(), context.cache.grids[context.teacher])


def teacher_means(context: Context, samples: Sequence[Sample]) -> np.ndarray:
    """The mean of the teacher's tokens of every sample [len(samples),D], chunk by chunk."""
    parts = [samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
    return np.concatenate([mean_token(teacher_tokens(context, part)).numpy() for part in parts])


def require_head(context: Context, tap: str) -> None:
    """Raises UserError if the tap has no head."""
    if context.head_at(tap) is None:
        there = ", ".join(context.model.taps)
        raise UserError(f"this run has no head on '{tap}'; it has {there if there else 'none (loss=none)'}")


def held_out_samples(context: Context) -> Samples:
    """The images on which features are scored: the test split or, without one, the validation split."""
    splits = context.cache.splits
    return splits["test"] if "test" in splits else splits["val"]


def subset(samples: Sequence[Sample], n: int) -> list[Sample]:
    """`n` samples (all, if there are fewer), chosen only by their ids."""
    return fixed_subset(samples, "probe", n)


def labels_of(samples: Sequence[Sample]) -> np.ndarray:
    """Class ids [len(samples)], for classifiers of features; the model does not get them."""
    return np.array([s.class_id for s in samples])
