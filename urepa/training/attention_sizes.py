"""The sizes of the attention maps that a loss compares, checked before step 0 (`urepa.method.attention_maps`)."""

from __future__ import annotations

from typing import Any

import torch

from urepa.core.errors import UserError, in_bucket
from urepa.core.teacher_names import ALONE
from urepa.core.types import no_rows
from urepa.data.bucketed_cache import Caches
from urepa.data.cache import Cache
from urepa.method.attention_maps import attention_of, teacher_blocks
from urepa.method.training_step import AlignedModel


@torch.no_grad()
def check_attention_sizes(model: AlignedModel, loss: Any, cache: Caches, objective: Any) -> None:
    """Raises UserError if, in any bucket, the teacher's patches are not on the grid of the backbone's tokens, or one of
    both has fewer heads than are compared. Runs both on one image."""
    if not attention_of(loss):
        return
    was_training = model.training
    model.eval()
    t_1 = objective.times_of(objective.time_at(0.5)).reshape(1)
    for bucket in cache.buckets:
        with in_bucket(bucket.bucket):
            _check(model, loss, bucket, t_1, cache.conditions.null(1))
    model.train(was_training)


def _check(model: AlignedModel, loss: Any, bucket: Cache, t_1: Any, condition: Any) -> None:
    x_t = torch.zeros(1, *bucket.latents.shape[-3:])
    output = model(x_t, t_1, condition, no_rows(t_1.device), bucket.grids)
    ours = next(iter(output.features.values())).grid  # all of such a backbone's blocks have one grid
    theirs = bucket.tokens[ALONE].teacher.attention_grid()  # type: ignore[union-attr]
    if ours != theirs:
        raise UserError(
            f"loss.attention compares the attention among the teacher's {theirs[0]}x{theirs[1]} patches with that "
            f"among the backbone's {ours[0]}x{ours[1]} tokens: give a teacher.image_size with as many patches, or "
            "another backbone.patch"
        )
    _, attention = bucket.teacher_attending([bucket.splits["val"][0]], teacher_blocks(loss))
    heads = min(one.q_BANE.shape[1] for one in (*output.attention.values(), *attention.values()))
    if loss.attention_heads is not None and loss.attention_heads > heads:
        raise UserError(
            f"loss.attention_heads={loss.attention_heads}: backbone and teacher both have {heads} heads; give as many "
            "or fewer"
        )
