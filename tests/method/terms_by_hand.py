"""The alignment terms' formulas, entry by entry in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.method.terms.contrastive import Contrastive
from urepa.method.terms.marginal_cosine import MarginalCosine
from urepa.method.terms.marginal_relations import MarginalRelations
from urepa.method.terms.sample_relations import SampleRelations
from urepa.method.terms.smooth_l1 import SmoothL1
from urepa.method.terms.squared_distance import SquaredDistance
from urepa.method.terms.structure import Structure
from urepa.method.terms.token_relations import TokenRelations

BATCH, GRID, WIDTH = 4, (2, 3), 5
TOKENS = GRID[0] * GRID[1]

TERMS: dict[str, Any] = {
    "squared_distance": SquaredDistance(),
    "smooth_l1": SmoothL1(beta=0.5),
    "marginal_cosine": MarginalCosine(margin=0.5),
    "marginal_relations": MarginalRelations(margin=0.25),
    "token_relations": TokenRelations(centred=False),
    "token_relations_centred": TokenRelations(centred=True),
    "structure": Structure(),
    "sample_relations": SampleRelations(centred=False),
    "sample_relations_centred": SampleRelations(centred=True),
    "contrastive_image": Contrastive(negatives="image", temperature=0.2),
    "contrastive_batch": Contrastive(negatives="batch", temperature=0.2),
}


def alone(x: Tensor) -> Tensor:
    return x


def tokens(seed: int, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


# --- by the formulas, in double precision with Python's loops -------------------------------------------------


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(unit(a) @ unit(b))


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def by_hand(name: str, student: np.ndarray, teacher: np.ndarray) -> list[float]:
    """The term of each sample. Samples are lists of tokens, which may be of different lengths."""
    found = []
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        places = range(len(s))
        if name == "squared_distance":
            value = mean_of([(s[n][d] - t[n][d]) ** 2 for n in places for d in range(WIDTH)])
        elif name == "smooth_l1":
            sizes = [abs(s[n][d] - t[n][d]) for n in places for d in range(WIDTH)]
            value = mean_of([x * x / (2 * 0.5) if x < 0.5 else x - 0.25 for x in sizes])
        elif name == "marginal_cosine":
            value = mean_of([max(0.0, 1 - 0.5 - cosine(s[n], t[n])) for n in places])
        elif name == "marginal_relations":
            pairs = [(m, n) for m in places for n in places]
            value = mean_of([max(0.0, abs(cosine(s[m], s[n]) - cosine(t[m], t[n])) - 0.25) for m, n in pairs])
        elif name == "structure":
            value = sum((cosine(s[m], s[n]) - cosine(t[m], t[n])) ** 2 for m in places for n in places)
        elif name.startswith("token_relations"):
            if name.endswith("centred"):
                s, t = s - s.mean(0), t - t.mean(0)
            pairs = [(m, n) for m in places for n in places if m != n]
            value = mean_of([(cosine(s[m], s[n]) - cosine(t[m], t[n])) ** 2 for m, n in pairs])
        elif name.startswith("sample_relations"):
            pooled = [
                np.stack([unit(np.mean([unit(x) for x in one], 0)) for one in side]) for side in (student, teacher)
            ]
            if name.endswith("centred"):
                pooled = [side - side.mean(0) for side in pooled]
            others = [j for j in range(len(student)) if j != i]
            value = mean_of(
                [(cosine(pooled[0][i], pooled[0][j]) - cosine(pooled[1][i], pooled[1][j])) ** 2 for j in others]
            )
        else:
            keys = [(j, m) for j in range(len(teacher)) for m in range(len(teacher[j]))]
            if name == "contrastive_image":
                keys = [(j, m) for j, m in keys if j == i]
            value = mean_of(
                [
                    -math.log(
                        math.exp(cosine(s[n], t[n]) / 0.2)
                        / sum(math.exp(cosine(s[n], teacher[j][m]) / 0.2) for j, m in keys)
                    )
                    for n in places
                ]
            )
        found.append(value)
    return found
