"""Attention pooling of frozen tokens: a learned query weights the tokens of a sample.

The tokens z are standardised by the mean and deviation of each feature over the training tokens. A query q [D] gives
weights softmax_N(z·q / √D), and the weighted mean of z is the sample's vector. q is trained together with a linear
classifier on training images, with `STEPS` steps of Adam, batches of `BATCH` and a rate that falls to 0. The classifier
is then dropped, and the vectors are evaluated like mean-pooled ones. Both are initialised with 0, so the query begins
as mean pooling. Only the batches are random, and they depend only on the number of samples.

Shapes: B batch, N tokens, D width, K classes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core import progress, random_draws
from urepa.core.types import Tokens

STEPS = 500
BATCH = 256
RATE = 0.03
SMALL = 1e-6  # added to a feature's deviation; a constant feature becomes 0

Rows = Callable[[np.ndarray], Tokens]  # returns the tokens of the samples with these indices


class TokenFile:
    """All samples' tokens on disk in fp32, in an unnamed file that is deleted with the process; memory holds a
    chunk."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  it lives as long as this object
        self._shape: tuple[int, ...] = ()
        self._grid = (0, 0)

    def append(self, tokens: Tokens) -> None:
        """Writes the tokens of the next samples."""
        assert tokens.mask_BN is None, "every token counts"
        rows = tokens.x_BND.float().cpu().contiguous().numpy()
        self._shape, self._grid = rows.shape[1:], tokens.grid
        left: Any = rows.reshape(-1).view(np.uint8)
        while len(left):  # one call writes at most 2 GiB
            left = left[self._file.write(left) :]

    def rows(self, indices: np.ndarray) -> Tokens:
        """The tokens of the samples with these indices in the order of writing."""
        values = np.empty((len(indices), *self._shape), np.float32)
        for row, index in zip(values, indices, strict=True):
            read = os.preadv(self._file.fileno(), [row], int(index) * row.nbytes)
            assert read == row.nbytes
        return Tokens(torch.from_numpy(values), self._grid)


@dataclass(frozen=True)
class AttentionPool:
    """A query and the statistics of the training tokens."""

    query_D: Tensor
    mean_D: Tensor
    deviation_D: Tensor

    def __call__(self, tokens: Tokens) -> Tensor:
        """A vector per sample [B,D], fp32, on the query's device."""
        with torch.autocast(self.query_D.device.type, enabled=False):  # independent of the run's precision
            z_BND = (tokens.x_BND.to(self.query_D.device).float() - self.mean_D) / self.deviation_D
            weight_BN = z_BND @ self.query_D / z_BND.shape[-1] ** 0.5
            if tokens.mask_BN is not None:
                weight_BN = weight_BN.masked_fill(~tokens.mask_BN.to(weight_BN.device), -torch.inf)
            return torch.einsum("bn,bnd->bd", weight_BN.softmax(1), z_BND)


def train(rows: Rows, labels: np.ndarray, device: torch.device) -> AttentionPool:
    """Trains the query on these samples' tokens and classes. Deterministic."""
    mean_D, deviation_D = _statistics(rows, len(labels), device)
    classes, target = np.unique(labels, return_inverse=True)
    query_D, weight_KD, bias_K = (
        torch.zeros(*shape, device=device, requires_grad=True)
        for shape in ((len(mean_D),), (len(classes), len(mean_D)), (len(classes),))
    )
    pool = AttentionPool(query_D, mean_D, deviation_D)
    adam = torch.optim.Adam([query_D, weight_KD, bias_K], lr=RATE)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, STEPS)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for step in progress.bar(
            range(STEPS), desc=f"attention pooling of {len(labels):,} images", unit="step", leave=False
        ):
            some = random_draws.generator(0, "attention pooling", step).integers(
                len(labels), size=min(BATCH, len(labels))
            )
            logits_BK = F.linear(pool(rows(some)), weight_KD, bias_K)
            loss = F.cross_entropy(logits_BK, torch.from_numpy(target[some]).to(device))
            adam.zero_grad()
            loss.backward()
            adam.step()
            falling.step()
    return AttentionPool(query_D.detach(), mean_D, deviation_D)


def apply_pool(rows: Rows, n: int, pool: Callable[[Tokens], Tensor]) -> np.ndarray:
    """The vectors [n,D] of n samples' tokens under a pool, computed in chunks."""
    return np.concatenate([pool(rows(part)).cpu().numpy() for part in _parts(n)])


def _statistics(rows: Rows, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every feature over all samples' tokens."""
    count, total_D, squares_D = 0, torch.zeros(1), torch.zeros(1)
    for part in _parts(n):
        x_TD = rows(part).x_BND.flatten(0, 1).double()
        count += len(x_TD)
        total_D, squares_D = total_D + x_TD.sum(0), squares_D + x_TD.square().sum(0)
    mean_D = total_D / count
    deviation_D = (squares_D / count - mean_D.square()).clamp(min=0).sqrt() + SMALL
    return mean_D.float().to(device), deviation_D.float().to(device)


def _parts(n: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]
