"""Random numbers of tokens: reproducible by sample, uniform, different between samples and tokens."""

from __future__ import annotations

import numpy as np
import torch

from urepa.models.token_draws import BITS, uniform_of_tokens


def reference(u: float, n: int) -> float:
    """The same in Python's integers, which do not overflow."""

    def mixed(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    sample = mixed(int(u * 2**24) & 0xFFFFFFFF)
    return (mixed((sample + (n * 0x9E3779B9 & 0xFFFFFFFF)) & 0xFFFFFFFF) >> 8) / 2**24


def test_they_are_those_of_exact_integers() -> None:
    u = torch.tensor([0.0, 0.123456, 0.5, 0.99999], dtype=torch.float32)
    found = uniform_of_tokens(u, 7)
    expected = [[reference(float(one), n) for n in range(1, 8)] for one in u]
    assert found.tolist() == expected
    assert torch.equal(uniform_of_tokens(u[2:], 7), found[2:]), "a sample's do not depend on the batch"
    assert torch.equal(uniform_of_tokens(u, 5), found[:, :5])


def test_they_are_uniform_and_independent() -> None:
    u = torch.from_numpy(np.random.default_rng(0).random(4000, dtype=np.float32))
    drawn = uniform_of_tokens(u, 64)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1
    counts = torch.histc(drawn, 32, 0, 1)
    chi2 = float(((counts - drawn.numel() / 32) ** 2 / (drawn.numel() / 32)).sum())
    assert chi2 < 31 + 5 * 62**0.5
    centred = drawn.double() - 0.5
    among_tokens = centred.mT @ centred / len(u) * 12 - torch.eye(64)
    assert float(among_tokens.abs().max()) < 6 / 4000**0.5
    assert len(drawn[:, 0].unique()) > 0.99 * len(u) * (1 - 4000 / 2**BITS)
