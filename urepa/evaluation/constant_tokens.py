"""The best constant answer to a teacher: its mean token, on the grid that its tokens are compared on.

Shapes: B samples of a chunk, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from urepa.core.types import Tokens
from urepa.data.bucketed_cache import Caches
from urepa.data.cache import Cache
from urepa.data.online_encoders import MEAN_SAMPLES
from urepa.method.alignment_grids import Grid
from urepa.models.layers import resize_tokens
from urepa.models.teachers.several_teachers import name_at

AT_ONCE = 32  # samples whose tokens are in memory


@dataclass(frozen=True)
class ConstantToken:
    """The constant answer to a teacher at the taps that are compared with it on the same grid."""

    tap: str  # one of these taps
    share: float  # of their weights in all taps'
    token_D: Tensor


def constant_tokens(cache: Caches, loss: Any, grids: Sequence[Mapping[str, Grid]]) -> dict[str, list[ConstantToken]]:
    """By teacher. Empty with `loss.spatial_norm`, where the targets have no known mean.

    Args:
        grids: of the heads' tokens, by head, in each bucket.
    """
    if not cache.teacher_names or loss.spatial_norm is not None:
        return {}
    whole = sum(loss.taps.values())
    found: dict[str, list[ConstantToken]] = {}
    for name in cache.teacher_names:
        taps_on: dict[tuple[Grid, ...], list[str]] = {}
        for tap in loss.taps:
            taps_on.setdefault(tuple(own[name_at(tap, name)] for own in grids), []).append(tap)
        found[name] = [
            ConstantToken(taps[0], sum(loss.taps[tap] for tap in taps) / whole, mean_on(cache, name, on))
            for on, taps in taps_on.items()
        ]
    return found


def mean_on(cache: Caches, teacher: str, grids: Sequence[Grid]) -> Tensor:
    """A teacher's mean token [D] where it is compared on these grids, one a bucket. On its own, the mean over all
    training tokens that is stored with them; on others the mean of its unit tokens there, over the first training
    images of each bucket, by the numbers of training tokens in the buckets."""
    if all(grid == tuple(bucket.grids[teacher]) for bucket, grid in zip(cache.buckets, grids, strict=True)):
        mean_D = cache.mean_token(teacher)
        assert mean_D is not None
        return mean_D
    total: Any = 0.0
    count = 0
    for bucket, grid in zip(cache.buckets, grids, strict=True):
        tokens = len(bucket.splits["train"]) * grid[0] * grid[1]
        total, count = total + _mean_of_first(bucket, teacher, grid) * tokens, count + tokens
    return (total / count).float()


def _mean_of_first(bucket: Cache, teacher: str, grid: Grid) -> Tensor:
    """The mean unit token [D] over the first training images, float64."""
    train = bucket.splits["train"]
    total: Any = 0.0
    images = min(MEAN_SAMPLES, len(train))
    for start in range(0, images, AT_ONCE):
        samples = [train[i] for i in range(start, min(start + AT_ONCE, images))]
        stored_BND = bucket.teacher_BND(samples, teacher)
        assert stored_BND is not None
        x_BND = resize_tokens(Tokens(stored_BND.cpu(), bucket.grids[teacher]), grid).x_BND
        total = total + F.normalize(x_BND.float(), dim=-1).double().sum((0, 1))
    mean_D: Tensor = total / (images * grid[0] * grid[1])
    return mean_D
