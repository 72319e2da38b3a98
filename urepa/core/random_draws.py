"""Addressed randomness: every draw is a function of (seed, purpose, step, position), not of a generator's state.

Philox is a counter-based generator whose counter serves as the address (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"). A new purpose does not change the draws of others, any number of GPUs and workers gets the same
numbers, and two arms with the same seed get the same data, noise and timesteps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from urepa.core.hashing import digest64


def generator(seed: int, purpose: str, step: int = 0, position: int = 0) -> np.random.Generator:
    """The generator at one address. It must be used for a fixed number of draws and then discarded."""
    key = np.array([seed & (2**64 - 1), digest64(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, position, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Standard normal float32 of `shape`."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def permutation(seed: int, epoch: int, n: int, purpose: str = "order") -> np.ndarray:
    """A permutation of `n` items for one epoch: the order of samples, or another purpose's."""
    return generator(seed, purpose, step=epoch).permutation(n)


def unit_interval(purpose: str, sample_id: str) -> float:
    """A number in [0,1) that depends only on the purpose and a sample's id, for splits and validation draws."""
    return digest64(purpose, sample_id) / 2**64


@contextlib.contextmanager
def torch_seed(seed: int, part: str) -> Iterator[None]:
    """Within the block torch's generators are seeded for (seed, part); afterwards their state is restored.

    A part that is built in the block does not depend on what was built before it: an arm's rank or depth does not
    change the initial weights of the other parts.
    """
    with torch.random.fork_rng():
        torch.manual_seed(digest64("part", seed, part) >> 1)
        yield
