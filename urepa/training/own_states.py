"""Heads and checks of a loss that reads the backbone's own states (`urepa.method.self_alignment`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from urepa.core.errors import UserError, in_bucket
from urepa.core.types import Batch
from urepa.data.bucketed_cache import Caches
from urepa.method.self_alignment import NO_OWN_STATES, OWN, PATCH, own_states
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.teachers.several_teachers import name_at


def own_heads(loss: Any, backbone: Any) -> dict[str, nn.Module]:
    """The heads of a loss without a teacher, by name: TAP/own. Raises UserError if its states do not fit together, or
    if nothing that trains precedes a state that is to be aligned: such a loss has nothing else to train."""
    own = own_states(loss)
    if own == NO_OWN_STATES:
        return {}
    widths = {tap: backbone.tap_width(tap) for tap in (*own.taps, *own.averaged, *own.frozen)}
    if own.x0:
        if not hasattr(backbone, "patch_values"):
            raise UserError(
                f"this loss compares tokens with patches of x0, which {type(backbone).__name__} does not have: choose "
                "a SiT, or another loss"
            )
        widths[PATCH] = backbone.patch_values
    if not any(backbone.trains_before(tap) for tap in own.taps):
        raise UserError(
            f"nothing trainable precedes {' or '.join(own.taps)}, so the loss would train nothing there: choose other "
            "taps, or lora.blocks=all"
        )
    if hasattr(loss, "use_patches"):
        loss.use_patches(backbone)
    return {name_at(tap, OWN): head for tap, head in loss.heads(widths).items()}


@torch.no_grad()
def check_own_states(model: AlignedModel, loss: Any, cache: Caches, objective: Any) -> None:
    """Computes the terms of two samples of zeros in each bucket before step 0, so that states that cannot be compared
    raise their UserError there."""
    own = own_states(loss)
    if own == NO_OWN_STATES:
        return
    was_training = model.training
    model.eval()
    t_B = objective.times_of(objective.time_at(0.5)).reshape(1).repeat(2)
    for bucket in cache.buckets:
        x0 = torch.zeros(2, *bucket.latents.shape[-3:])
        draws = {purpose: torch.zeros(2) for purpose in own.draws}
        batch = Batch([], x0, torch.zeros_like(x0), t_B, cache.conditions.null(2), {}, draws=draws)
        with in_bucket(bucket.bucket):
            step_terms(model, objective, loss, batch, 0, lambda x_BD: x_BD)
    model.train(was_training)
