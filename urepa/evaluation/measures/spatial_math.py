"""Spatial self-similarity of tokens: iREPA's measures (arXiv 2512.10794). They measure how much more similar near
tokens are than distant ones, and how much the tokens of an image differ.

All use cosines within an image and Manhattan distances d = |Δrow| + |Δcolumn| in steps of the grid. On a grid of h x w
tokens the largest distance is (h − 1) + (w − 1). iREPA measures on 16x16 grids, with d >= 6 as distant and a slope over
d = 1 to 8. Here both are shares of a grid's largest distance, because taps and teachers have grids of different sizes
and images other proportions: 0.2 and 0.27 of 30 give 6 and 8.

Shapes: B images, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.data.lists.samples import Sample
from urepa.evaluation.context import Context
from urepa.evaluation.features import CHUNK, Chunk, Pool, held_out_samples, pool_chunks, subset, teacher_tokens
from urepa.evaluation.measures.spatial import Spatial


def local_distant(tokens: Tokens, far: float) -> Tensor:
    """LDS [B]: the mean cosine of neighbours (d = 1) minus that of pairs with d of at least `far` of the grid's largest
    distance. From -2 to 2; 0 if similarity does not depend on position."""
    similarity_BNN, distance_NN = _pairs(tokens)
    distant_NN = distance_NN >= _steps(tokens.grid, far)
    return similarity_BNN[:, distance_NN == 1].mean(1) - similarity_BNN[:, distant_NN].mean(1)


def decay_slope(tokens: Tokens, upto: float) -> Tensor:
    """CDS [B]: the decrease of the mean cosine with d per step of the grid: minus the slope of a line fitted through
    d = 1 to `upto` of the grid's largest distance."""
    similarity_BNN, distance_NN = _pairs(tokens)
    steps = torch.arange(1, _steps(tokens.grid, upto) + 1, device=similarity_BNN.device)
    means_BK = torch.stack([similarity_BNN[:, distance_NN == d].mean(1) for d in steps], dim=1)
    centred_K = steps - steps.double().mean()
    return -(means_BK @ centred_K) / centred_K.square().sum()


def contrast(tokens: Tokens) -> Tensor:
    """RMSC [B]: the root mean square distance of unit tokens from their mean, from 0 (all equal) to 1."""
    unit_BND = F.normalize(tokens.x_BND.double(), dim=-1)
    return (unit_BND - unit_BND.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()


def measure_structure(asked: Spatial, context: Context) -> dict[str, float]:
    """The three measures of each kind of tokens, averaged over held-out images."""
    samples = subset(held_out_samples(context), asked.images)
    sources: dict[str, Callable[[Chunk], Tokens]] = {"tap": lambda chunk: chunk.taps[asked.tap]}
    if context.head_at(asked.tap) is not None:
        sources["head"] = lambda chunk: chunk.heads[asked.tap]
    pools: dict[str, Pool] = {what: partial(_chunk_measures, asked, source) for what, source in sources.items()}
    walk = (context, samples, (asked.tap,), asked.timestep)
    found = {what: torch.from_numpy(rows) for what, rows in pool_chunks(*walk, pools).items()}
    for floor, build in context.floors.items():
        rows = pool_chunks(*walk, {"tap": pools["tap"]}, build())["tap"]
        found[f"{floor}_tap"] = torch.from_numpy(rows)
    if context.cache.tokens:
        found["teacher"] = _teacher_measures(asked, context, samples)
    means = {what: rows_B3.mean(0).tolist() for what, rows_B3 in found.items()}
    return {
        f"final/{measure}/{what}": values[i]
        for i, measure in enumerate(("lds", "cds", "rmsc"))
        for what, values in means.items()
    }


def _chunk_measures(asked: Spatial, source: Callable[[Chunk], Tokens], chunk: Chunk) -> Tensor:
    return _measures(asked, source(chunk))


def _teacher_measures(asked: Spatial, context: Context, samples: list[Sample]) -> Tensor:
    parts = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    return torch.cat([_measures(asked, teacher_tokens(context, part)) for part in parts])


def _measures(asked: Spatial, tokens: Tokens) -> Tensor:
    """The three measures [B,3] of each sample's tokens."""
    if sum(tokens.grid) < 4:
        raise UserError(f"a grid of {tokens.grid[0]}x{tokens.grid[1]} tokens is too small to have distant ones")
    return torch.stack([local_distant(tokens, asked.far), decay_slope(tokens, asked.decay), contrast(tokens)], dim=1)


def _pairs(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Cosines [B,N,N] of an image's tokens, and their Manhattan distances [N,N]."""
    assert tokens.mask_BN is None, "every place of the grid has a token"
    unit_BND = F.normalize(tokens.x_BND.double(), dim=-1)
    rows, columns = (torch.arange(n, device=unit_BND.device) for n in tokens.grid)
    place_N2 = torch.cartesian_prod(rows, columns)
    distance_NN = (place_N2[:, None] - place_N2).abs().sum(-1)
    return unit_BND @ unit_BND.transpose(1, 2), distance_NN


def _steps(grid: tuple[int, int], share: float) -> int:
    """A share of the grid's largest distance in whole steps, at least 2, because 1 is a neighbour."""
    return max(2, round(share * (sum(grid) - 2)))
