"""How much of a backbone's cross-attention goes to each part of the condition.

The scores are computed again from the inputs of each cross-attention, for `QUERIES` queries of `CHUNK` images at a
time, so memory does not grow with the number of queries.

Shapes: B images, N queries, S context tokens, A heads, E width of a head, D width of a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from urepa.core import random_draws
from urepa.core.attention_protocols import CrossAttending
from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.data.lists.samples import Sample
from urepa.evaluation.conditioned_images import own_condition
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, subset, time_label
from urepa.evaluation.measures.attention_mass import PICTURE, AttentionMass
from urepa.evaluation.plots import curves_png

QUERIES = 128  # whose scores are held together: B·A·QUERIES·S values
CHUNK = 8  # images


@torch.no_grad()
def measure_mass(asked: AttentionMass, context: Context) -> dict[str, float]:
    """The shares by part, with those of each block and time. It also writes the figure."""
    samples = subset(held_out_samples(context), asked.images)
    if not isinstance(context.model.backbone, CrossAttending):
        raise UserError(
            "this run's backbone has no cross-attention to a caption and an image; leave this evaluation out"
        )
    own_condition(context, samples[:1])  # raises here if the condition has no image
    times = sorted(set(asked.timesteps))
    by_t = {t: [_shares(context, samples[i : i + CHUNK], t) for i in range(0, len(samples), CHUNK)] for t in times}
    parts = list(by_t[times[0]][0][0])
    blocks = range(len(by_t[times[0]][0]) - 1)
    metrics: dict[str, float] = {}
    for part in parts:
        mean = {t: [float(torch.cat([one[k][part] for one in by_t[t]]).mean()) for k in blocks] for t in times}
        for t, values in mean.items():
            at = time_label(context.objective, t)
            metrics |= {f"final/attention_mass_{part}_by_t/block_{k}/{at}": v for k, v in enumerate(values)}
        metrics[f"final/attention_mass/{part}"] = sum(sum(values) / len(values) for values in mean.values()) / len(
            times
        )
        uniform = torch.cat([one[-1][part] for one in by_t[times[0]]])
        metrics[f"final/attention_mass_uniform/{part}"] = float(uniform.mean())
    _write_figure(context, metrics, parts, times, len(blocks))
    return metrics


def _write_figure(
    context: Context, metrics: dict[str, float], parts: list[str], times: list[float], depth: int
) -> None:
    panels = {
        f"attention to {part}": {
            f"t = {(at := time_label(context.objective, t))}": [
                (float(k), metrics[f"final/attention_mass_{part}_by_t/block_{k}/{at}"]) for k in range(depth)
            ]
            for t in times
        }
        for part in parts
    }
    write_whole(context.picture_file(PICTURE), curves_png(panels, "block"))


def _shares(context: Context, samples: list[Sample], t: float) -> list[dict[str, Tensor]]:
    """The shares [B] by part at each block for some images at a time, followed by those of uniform attention."""
    time = context.objective.times_of(t)
    if not context.objective.has_time(time):
        raise UserError(f"{t} is not a time of this run's objective, which has {context.objective.times}")
    backbone: Any = context.model.backbone
    x0 = context.cache.x0(samples)
    rngs = [random_draws.generator(random_draws.digest64("attention", s.sample_id), "noise") for s in samples]
    noise = torch.stack([random_draws.normal(tuple(x0.shape[1:]), rng) for rng in rngs])
    t_B = time.repeat(len(samples))
    x_t = context.objective.corrupt(x0, noise, t_B).to(context.device)
    condition = own_condition(context, samples).to(context.device)
    lengths = backbone.context_lengths(condition)
    with recorded_attention(backbone) as shares:
        backbone(x_t, t_B.to(context.device), condition)
    mask_BS = backbone.global_and_context(t_B.to(context.device), condition)[2].float().cpu()
    shares.append(mask_BS / mask_BS.sum(1, keepdim=True))
    return [dict(zip(lengths, (p.sum(1) for p in x.split(list(lengths.values()), 1)), strict=True)) for x in shares]


@contextlib.contextmanager
def recorded_attention(backbone: Any) -> Iterator[list[Tensor]]:
    """Inside, a call of the backbone appends the attention [B,S] of each cross-attention to each token of its context,
    in order. Compiled blocks run as they are written, because a compiled one calls no hook."""
    found: list[Tensor] = []

    def append(attention: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        with torch.autocast(inputs[0].device.type, enabled=False):
            found.append(attention_to(attention, *inputs).cpu())

    hooks = [attention.register_forward_pre_hook(append) for attention in backbone.cross_attentions()]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_to(attention: Any, x_BND: Tensor, context_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """The attention to each token of the context, averaged over queries and heads: [B,S], in fp32. It adds up to 1."""
    q_BANE = attention.q(x_BND.float()).unflatten(2, (attention.heads, -1)).transpose(1, 2)
    k_BASE = attention.kv(context_BSD.float()).unflatten(2, (2, attention.heads, -1))[:, :, 0].transpose(1, 2)
    total_BS = torch.zeros(mask_BS.shape, dtype=torch.float64, device=x_BND.device)
    for some_BANE in q_BANE.split(QUERIES, dim=2):
        scores = some_BANE @ k_BASE.transpose(2, 3) / some_BANE.shape[-1] ** 0.5
        total_BS += scores.masked_fill(~mask_BS[:, None, None], -torch.inf).softmax(-1).sum((1, 2)).double()
    return (total_BS / (q_BANE.shape[1] * q_BANE.shape[2])).float()
