"""Addressed randomness: every draw is a function of (seed, purpose, step, position), never of a stream.

Philox is a counter-based generator, so an address is its counter (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"). A new purpose never shifts another one's draws, any number of GPUs and
workers sees the same numbers, and two arms with the same seed see the same data, noise and timesteps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from urepa.core.hashing import digest64


def generator(seed: int, purpose: str, step: int = 0, position: int = 0) -> np.random.Generator:
    """The generator at one address. Draw a fixed amount from it and let it go."""
    key = np.array([seed & (2**64 - 1), digest64(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, position, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Standard normal float32 of `shape`."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def permutation(seed: int, epoch: int, n: int, purpose: str = "order") -> np.ndarray:
    """The order of `n` things in one epoch: of samples, or another purpose's."""
    return generator(seed, purpose, step=epoch).permutation(n)


def unit_interval(purpose: str, sample_id: str) -> float:
    """A number in [0,1) that belongs to a sample id alone: splits and validation draws use it."""
    return digest64(purpose, sample_id) / 2**64


@contextlib.contextmanager
def torch_seed(seed: int, part: str) -> Iterator[None]:
    """Torch's own generators seeded for (seed, part) inside, and as they were outside.

    A part built in here does not depend on what was built before it: an arm's rank or depth leaves the
    other parts' initial weights as they are.
    """
    with torch.random.fork_rng():
        torch.manual_seed(digest64("part", seed, part) >> 1)
        yield
